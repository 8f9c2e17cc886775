"""Search: workers share a study and survive each other, failures are counted, other mail is refused, and the line runs."""
import json
import multiprocessing
import os
import time
from collections import Counter
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import papermill
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from email_trm.core.errors import ConfigError, DataError, EmailTRMError, ResourceError, StoppedError
from email_trm.mail.message import Email
from email_trm.mail.sample import sample_mailbox
from email_trm.training import search
from email_trm.training.search import HyperparameterOptimizer, TrialFailed, is_finished
from email_trm.training.trainer import Recipe

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "nbs" / "pipelines" / "search.ipynb"
SHAPE = {"hidden_size": 32, "pair_buckets": 512, "body_tokens": 30, "sender_tokens": 8, "subject_tokens": 12, "L_cycles": 1,
    "halt_max_steps": 1, "body_windows": [8, 20]}
TINY = Recipe(epochs=1, updates=1, batch_size=32, vocab_size=600, evidence=False, model=SHAPE)
SPACE = {"learning_rate": FloatDistribution(2.5e-4, 1.6e-2, log=True), "hidden_size": IntDistribution(32, 64, step=32)}
TRIALS = 6


@cache
def labelled() -> list[Email]:
    """Synthetic mail with labels."""
    return [m for m in sample_mailbox() if m.category]


def optimizer(folder: Path, heartbeat: int = 1, **more: Any) -> HyperparameterOptimizer:
    """A tiny search on synthetic mail."""
    mails = labelled()[:120]
    names = sorted({m.category for m in mails if m.category})
    return HyperparameterOptimizer(mails[:80], mails[80:], names, TINY, folder, space=SPACE, heartbeat=heartbeat, **more)


def pretend(monkeypatch: pytest.MonkeyPatch, train: Any) -> None:
    """Trials that take no time: `train(number, callbacks)` gives the score."""
    def stand_in(learn: Any, choose: Any, names: Any, how: Recipe, folder: Path, seed: int, label: str, callbacks: Any) -> Any:
        folder.mkdir(parents=True)
        (folder / "checkpoint").write_text("", encoding="utf-8")
        score = train(int(folder.name), callbacks)
        model = type("Model", (), {"num_parameters": lambda self: 1})()
        return type("Trained", (), {"history": [{"eval_macro_f1": score}], "seconds": 0.0, "model": model})()
    monkeypatch.setattr(search, "train_categories", stand_in)


# ---- several workers -------------------------------------------------------------------------------------------------------
CONTEXT = multiprocessing.get_context("forkserver")  # imports the large libraries once
CONTEXT.set_forkserver_preload(["email_trm.training.search", "transformers.trainer"])


def work(folder: Path, hang: bool) -> None:
    """A worker that searches until the study is done, and notes what it begins; or one that stays in its first trial."""
    train = search.train_categories

    def noted(*args: Any, **kwargs: Any) -> Any:
        (folder / f"drawn-{os.getpid()}-{Path(args[4]).name}").touch()
        if hang:
            Path(args[4]).mkdir(parents=True)
            time.sleep(600)
        return train(*args, **kwargs)

    search.train_categories = noted
    optimizer(folder).optimize(TRIALS)


def start_worker(folder: Path, hang: bool = False) -> Any:
    """A process of its own."""
    process = CONTEXT.Process(target=work, args=(folder, hang), daemon=True)
    process.start()
    return process


def drawn(folder: Path) -> Counter[str]:
    """Trainings begun, by worker."""
    return Counter(p.name.split("-")[1] for p in folder.glob("drawn-*"))


def wait_for(condition: Any, seconds: float = 60) -> None:
    """Until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.slow
def test_two_workers_share_a_study_and_a_kill_loses_nothing(tmp_path: Path) -> None:
    """Of three processes one is killed in the middle of a trial. The others do that trial too: no trial is lost, none is done twice."""
    victim = start_worker(tmp_path, hang=True)
    wait_for(lambda: drawn(tmp_path))
    workers = [start_worker(tmp_path), start_worker(tmp_path)]
    wait_for(lambda: len(drawn(tmp_path)) == 3)
    victim.kill()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    study = optimizer(tmp_path).study
    done = [t for t in study.trials if is_finished(t)]
    assert len(done) == TRIALS and len(study.trials) == TRIALS + 1
    lost = next(t for t in study.trials if not is_finished(t))
    assert lost.state == TrialState.FAIL and lost.number == 0  # the victim had the default
    assert [t.params for t in done].count(lost.params) == 1
    assert len({tuple(t.params.values()) for t in done}) == TRIALS
    begun = drawn(tmp_path)
    assert sum(begun.values()) == TRIALS + 1 and all(begun[str(w.pid)] for w in (victim, *workers))
    assert study.best_value == max(t.value for t in done if t.state == TrialState.COMPLETE)
    assert not list((tmp_path / "trials").glob("*"))


def count_to(folder: Path, trials: int) -> None:
    """A worker whose trials take no time, so that drawing is all it does."""
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, lambda number, callbacks: number / 100)
        optimizer(folder, heartbeat=15).optimize(trials)


@pytest.mark.slow
def test_crowding_workers_draw_no_trial_twice(tmp_path: Path) -> None:
    """Three workers that do nothing but draw, on a database that does not exist yet, end with exactly the trials asked for."""
    crowd = [CONTEXT.Process(target=count_to, args=(tmp_path, 12), daemon=True) for _ in range(3)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(60)
        assert process.exitcode == 0
    trials = optimizer(tmp_path).study.trials
    assert [t.number for t in trials] == list(range(12)) and {t.state for t in trials} == {TrialState.COMPLETE}
    assert len({tuple(t.params.values()) for t in trials}) == 12


def test_a_worker_that_died_while_drawing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial without any sign of life holds no place for ever, and the default comes back."""
    pretend(monkeypatch, lambda number, callbacks: 0.5)
    first = optimizer(tmp_path)
    taken = first.study.ask()
    assert first.take_one(1) is False  # perhaps it is only slow
    real = datetime

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return real.now(tz) + timedelta(seconds=30)

    monkeypatch.setattr(search, "datetime", Later)
    first.optimize(2)
    assert first.study.trials[taken.number].state == TrialState.FAIL
    assert first.finished()[0].params == first.default and len(first.finished()) == 2


def test_a_worker_whose_trial_was_taken_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that slept finds its trial declared dead, and draws another."""
    def train(number: int, callbacks: Any) -> float:
        if number == 0:
            first.study.tell(0, state=TrialState.FAIL)
        return 0.5

    pretend(monkeypatch, train)
    first = optimizer(tmp_path)
    first.optimize(2)
    assert [t.state for t in first.study.trials] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]


# ---- failures --------------------------------------------------------------------------------------------------------------
def test_failures_count_and_the_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial out of memory or with a loss that is no number is counted; its checkpoints are removed; a stopped one is not counted."""
    def train(number: int, callbacks: Any) -> float:
        if number == 1:
            raise ResourceError("one mail at a time does not fit into memory")
        if number == 2:
            raise KeyboardInterrupt
        if number == 3:
            raise MemoryError
        if number == 4:
            callbacks[0].on_evaluate(None, None, None, {"eval_loss": float("nan"), "eval_macro_f1": 0.1})
        return 0.1 * number

    pretend(monkeypatch, train)
    first = optimizer(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        first.optimize(6)
    with pytest.raises(TrialFailed, match="three trials in a row"):
        first.optimize(6)
    assert [t.user_attrs.get("error") for t in first.finished()][2:] == ["out of memory", "the loss is not a number any more"]
    first.optimize(6)
    table = search.trials_table(first.study)
    assert list(table["state"]) == ["complete", "fail", "fail", "fail", "complete", "complete"]
    assert list(table["number"]) == [0, 1, 3, 4, 5, 6]
    assert first.study.best_trial.number == 6 and not list((tmp_path / "trials").glob("*"))


def test_a_trial_is_trained_at_the_rate_it_drew(tmp_path: Path) -> None:
    """A training that begins again after it diverged has another rate, so it is a failed trial."""
    feed = search.Feed(optimizer(tmp_path).study.ask())
    feed.on_train_begin(None, None, None)
    with pytest.raises(TrialFailed, match="diverged"):
        feed.on_train_begin(None, None, None)


@pytest.mark.parametrize("error", [StoppedError("stopped"), DataError("no label"), ConfigError("nonsense"), RuntimeError("a bug")])
def test_what_every_trial_would_meet_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Bugs and wrong mail are not taken for bad luck."""
    def train(number: int, callbacks: Any) -> float:
        raise error

    pretend(monkeypatch, train)
    first = optimizer(tmp_path)
    with pytest.raises(type(error)):
        first.optimize(3)
    assert first.finished() == []
    with pytest.raises(DataError, match="no trial has finished"):
        first.best_recipe()


def test_bad_trials_are_stopped_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial below the median at the same epoch is pruned; the pruned count, and never win."""
    def train(number: int, callbacks: Any) -> float:
        level = 0.9 if number == 5 else 0.5 - 0.01 * number
        for epoch in (1, 2, 3):
            callbacks[0].on_evaluate(None, type("State", (), {"epoch": float(epoch)})(), None, {"eval_loss": 1.0, "eval_macro_f1": level})
        return level

    pretend(monkeypatch, train)
    first = optimizer(tmp_path)
    first.optimize(7)
    states = [t.state for t in first.finished()]
    assert states[:4] == [TrialState.COMPLETE] * 4 and states[4:] == [TrialState.PRUNED, TrialState.COMPLETE, TrialState.PRUNED]
    assert max(first.finished()[4].intermediate_values) == 2  # not before the second epoch
    assert first.study.best_trial.number == 5


def test_minutes_end_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No trial begins after the time is over; the study can go on later."""
    pretend(monkeypatch, lambda number, callbacks: 0.5)
    first = optimizer(tmp_path)
    assert len(first.optimize(4, minutes=0.0).trials) == 1  # the default waits
    assert first.finished() == [] and len(first.optimize(4).trials) == 4


def test_an_address_is_not_shown(tmp_path: Path) -> None:
    """Nor is its password."""
    with pytest.raises(ConfigError) as caught:
        optimizer(tmp_path, storage="postgresql://me:secret@db.example.org/x")
    shown, cause = str(caught.value), caught.value
    assert "secret" not in shown and isinstance(cause, EmailTRMError) and cause.__suppress_context__


# ---- the comparison --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("rate", "adopted"), [((0.9, 0.9, 0.9), True), ((0.9, 0.4, 0.9), False), ((0.6, 0.6, 0.6), False)])
def test_only_a_sure_gain_is_adopted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rate: tuple[float, ...], adopted: bool) -> None:
    """A gain in every seed and for most senders is adopted; one that a seed denies, or none, is not. Test mail decides nothing."""
    mails = labelled()
    names = sorted({m.category for m in mails if m.category})
    labels = search.label_indices(mails, names)
    parts = {"train": mails, "validation": mails, "test": mails}

    def measured(parts: Any, categories: Any, how: Recipe, seed: int, folder: Path) -> dict[str, Any]:
        rng = search.np.random.default_rng([seed, how.epochs])
        share = rate[seed - 1] if how.epochs == 2 else 0.6
        said = search.np.where(rng.random(len(labels)) < share, labels, (labels + 1) % len(names)).tolist()
        wrong = ((labels + 1) % len(names)).tolist()
        return {"seed": seed, "minutes": 1.0, "parameters": 1, "predicted": {"validation": said, "test": wrong}}

    monkeypatch.setattr(search, "measure_recipe", measured)
    found = search.compare(parts, names, Recipe(epochs=2), Recipe(), tmp_path)
    assert found["adopted"] is adopted
    assert found["test"]["difference"]["mean"] == 0
    text = search.verdict(found)
    assert ("adopt it" in text) is adopted and ("default stays" in text) is not adopted
    assert search.compare(parts, names, Recipe(epochs=2), Recipe(), tmp_path, [1])["adopted"] is False  # one seed has no interval


# ---- the pipeline ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_pipeline_on_the_sample(tmp_path: Path) -> None:
    """The whole line on synthetic mail, tiny; the report has numbers, pictures with words for them, and a verdict."""
    given = {"split": "random", "trials": 4, "mails": 150, "seeds": "1,2", "work": str(tmp_path / "work"),
        "output": str(tmp_path / "report"),
        "settings": {"epochs": 1, "batch_size": 32, "vocab_size": 600, "evidence": False, "model": SHAPE}}
    known = papermill.inspect_notebook(str(TEMPLATE))
    assert set(given) < set(known)
    papermill.execute_notebook(str(TEMPLATE), str(tmp_path / "out.ipynb"), given, progress_bar=False)
    page = (tmp_path / "report" / "README.md").read_text(encoding="utf-8")
    names = {p.name for p in (tmp_path / "report").iterdir()}
    assert names == {"README.md", "metrics.json", "history.png", "slices.png", "importance.png"}
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["synthetic"] is True and sum(metrics["states"].values()) == 4 and metrics["versions"]["optuna"] == optuna.__version__
    assert "synthetic" in page and "@" not in page and all(f"]({name})" in page for name in names if name.endswith(".png"))
