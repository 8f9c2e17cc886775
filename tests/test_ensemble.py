"""Votes by hand, an ensemble that is killed, and a model distilled from one."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from email_trm.core.errors import ConfigError
from email_trm.data.manager import EmailDatasetManager
from email_trm.data.schema import to_mails
from email_trm.mail.message import Email
from email_trm.training.checkpoints import newest_checkpoint
from email_trm.training.ensemble import Ensemble, agreement, averaged, distil, load_ensemble, majority_vote, soft_vote, train_ensemble
from email_trm.training.trainer import Recipe, TRMTrainer, calibrated_answers, train_categories

TINY = Recipe(epochs=3, batch_size=16, vocab_size=800, learning_rate=2e-3, ema=0.9,
    model={"hidden_size": 32, "pair_buckets": 512, "body_tokens": 30, "L_cycles": 1, "halt_max_steps": 2})
Mails = dict[str, list[Email]]


def mails() -> tuple[Mails, list[str]]:
    """Synthetic mail: what is known, unlabelled mail, validation and test."""
    manager = EmailDatasetManager("sample").load()
    parts = {p: to_mails(f) for p, f in manager.split("random", 0).parts.items()}
    more = [replace(m, category=None, alt_category=None) for m in parts["train"][120:240]]
    found = {"train": parts["train"][:120], "more": more, "validation": parts["validation"][:50], "test": parts["test"]}
    return found, manager.taxonomy.names


def train(folder: Path) -> Ensemble:
    """Two tiny members."""
    parts, names = mails()
    return train_ensemble(parts["train"], parts["validation"], names, TINY, folder, seeds=(0, 1))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The same sums in the same order, in this process and in the one that is killed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an ensemble whose training was killed while its second member learned."""
    folder = tmp_path_factory.mktemp("ensemble") / "seeds"
    code = f"import pathlib, tests.test_ensemble as t; t.torch.set_num_threads(1); t.train(pathlib.Path({str(folder)!r}))"
    root = Path(__file__).resolve().parent.parent
    running = subprocess.Popen([sys.executable, "-c", code], cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline, found = time.monotonic() + 120, list[Path]()
    while not found and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
        found = [p for p in folder.glob("member-1/checkpoints-*") if newest_checkpoint(p)]
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL and found
    return folder


@pytest.mark.slow
def test_killed_ensemble_goes_on(killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kill -9` in the second member: the first is not trained again, the second ends with the weights of a training nobody killed."""
    folder, parts, names = killed, *mails()
    assert (folder / "member-0/member.json").is_file() and not (folder / "member-1/member.json").exists()
    with pytest.raises(ConfigError, match="no finished ensemble"):
        load_ensemble(folder)
    first, step, steps = (folder / "member-0/member.json").stat().st_mtime_ns, TRMTrainer.training_step, list[int]()

    def counted(self: TRMTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        steps.append(self.state.global_step)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TRMTrainer, "training_step", counted)
        ensemble = train(folder)
    once = math.ceil(len(parts["train"]) / TINY.batch_size)
    assert steps == list(range(steps[0], 3 * once)) and steps[0] >= once  # Only the second member, and not from its beginning
    assert (folder / "member-0/member.json").stat().st_mtime_ns == first
    assert [m.record["whole"] for m in ensemble.members] == [True, False]
    assert not list(folder.glob("member-*/checkpoints-*"))
    whole, again = train_categories(parts["train"], parts["validation"], names, TINY, tmp_path, seed=1).model, ensemble.members[1].model
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert whole.config.temperature == again.config.temperature
    assert np.array_equal(load_ensemble(folder).predict_proba(parts["test"]), ensemble.predict_proba(parts["test"]))


def test_distilled_model_learns_the_vote(killed: Path, tmp_path: Path) -> None:
    """On mail nobody saw, the distilled model names what the ensemble names far more often than by chance."""
    parts, _ = mails()
    ensemble = train(killed)
    student = distil(ensemble, parts["train"], parts["validation"], parts["more"], TINY, tmp_path)
    theirs = ensemble.predict_proba(parts["test"]).argmax(1)
    ours = calibrated_answers(student.model, student.tokenizer, parts["test"])[0].argmax(1)
    assert (ours == theirs).mean() > 2 * np.bincount(theirs).max() / len(theirs)


def test_votes_by_hand() -> None:
    """Worked out on paper."""
    says = np.array([[[0.5, 0.4, 0.1], [0.1, 0.8, 0.1]], [[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]], [[0.0, 0.1, 0.9], [0.5, 0.4, 0.1]]])
    assert np.allclose(soft_vote(says), [[1 / 3, 0.8 / 3, 1.2 / 3], [0.4, 0.5, 0.1]])
    assert soft_vote(says).argmax(1).tolist() == [2, 1]
    assert majority_vote(says).tolist() == [0, 0]
    assert np.allclose(agreement(says, majority_vote(says)), [2 / 3, 2 / 3])
    assert np.allclose(agreement(says, soft_vote(says).argmax(1)), [1 / 3, 1 / 3])
    assert np.allclose(soft_vote(says, [1, 0, 0]), says[0])
    assert np.allclose(averaged(np.array([[0.0, 1.0], [1.0, 0.5]]), [1, 3]), [0.75, 0.625])


@pytest.mark.parametrize(("first", "second", "chosen"), [
    ([0.6, 0.4, 0.0], [0.1, 0.9, 0.0], 1),  # one vote each, b has the higher mean
    ([0.9, 0.1, 0.0], [0.4, 0.6, 0.0], 0),  # one vote each, a has the higher mean
    ([0.5, 0.0, 0.5], [0.0, 0.0, 1.0], 2),  # a's vote came first, c has the higher mean
    ([0.5, 0.5, 0.0], [0.5, 0.5, 0.0], 0),  # alike in everything: the first
])
def test_ties(first: list[float], second: list[float], chosen: int) -> None:
    """Between equally many votes the mean decides."""
    assert majority_vote(np.array([[first], [second]])).tolist() == [chosen]


def test_a_mean_never_outweighs_a_vote() -> None:
    """Two hesitating members outvote a sure one, whatever the numbers."""
    rng = np.random.default_rng(0)
    says = rng.dirichlet(np.full(4, 0.05), size=(5, 3000))
    votes = np.eye(4)[says.argmax(2)].sum(0)
    assert np.array_equal(votes[np.arange(3000), majority_vote(says)], votes.max(1))
