"""Real mail, where there is any: it loads, splits without leaks, and a small model learns from it. No text is ever printed."""
from pathlib import Path

import pytest

from email_trm.data.manager import EmailDatasetManager
from email_trm.data.schema import to_mails
from email_trm.data.splits import groups_of
from email_trm.evaluation.benchmark import run_peer
from email_trm.mail.message import address
from email_trm.training.trainer import Recipe, train_categories

pytestmark = pytest.mark.xdist_group("real mail")  # one worker, so that the corpus is read once


@pytest.fixture(scope="module")
def manager(shared_data: Path) -> EmailDatasetManager:
    """The labelled corpus."""
    return EmailDatasetManager(shared_data / "emails.jsonl.gz").load()


def test_corpus_loads_whole(manager: EmailDatasetManager) -> None:
    found = manager.statistics()
    assert found["n"] + sum(found["skipped"].values()) == 15_471 and found["n"] > 15_400
    assert len(manager.taxonomy.names) == 10 and not manager.synthetic


@pytest.mark.parametrize("kind", ["random", "group"])
def test_splits_hold(manager: EmailDatasetManager, kind: str) -> None:
    cut = manager.split(kind)
    sizes = {p: len(f) / len(manager.frame) for p, f in cut.parts.items()}
    assert abs(sizes["train"] - 0.70) < 0.05 and abs(sizes["test"] - 0.15) < 0.03
    if kind == "group":
        groups = {p: set(groups_of(f)) | {address(s) for s in f["sender"]} - {""} for p, f in cut.parts.items()}
        assert not groups["train"] & (groups["test"] | groups["validation"]) and not groups["validation"] & groups["test"]


def test_a_small_model_learns_from_real_mail(manager: EmailDatasetManager, tmp_path: Path) -> None:
    """Two epochs on 1,500 mails: far above the majority category, below what a full training gives."""
    parts = {p: to_mails(f.sample(1500 if p == "train" else 300, random_state=0)) for p, f in manager.split("random").parts.items()}
    recipe = Recipe(epochs=3, batch_size=32, learning_rate=1e-3, ema=0.9, vocab_size=4000,
        model={"hidden_size": 64, "body_tokens": 100, "pair_buckets": 4096, "H_cycles": 1, "halt_max_steps": 2})
    trained = train_categories(parts["train"], parts["validation"], manager.taxonomy.names, recipe, tmp_path)
    best = max(row.get("eval_accuracy", 0) for row in trained.history)
    majority, _ = run_peer("majority", parts["train"], parts["validation"])
    assert best > (majority["category"] == majority["predicted"]).mean() + 0.1
