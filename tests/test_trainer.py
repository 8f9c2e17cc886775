"""A training that was stopped goes on where it was."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from email_trm.core.errors import TrainingError
from email_trm.data.manager import EmailDatasetManager
from email_trm.data.schema import to_mails
from email_trm.mail.sample import sample_mailbox
from email_trm.serving.classifier import EmailClassifier
from email_trm.training import trainer
from email_trm.training.checkpoints import Saving, newest_checkpoint
from email_trm.training.trainer import Recipe, TRMTrainer, train_categories
from email_trm.trm.files import load_model, save_model
from email_trm.trm.warm import random_encoder, reader_shape

TINY = Recipe(epochs=3, batch_size=64, vocab_size=800, ema=0.9, evidence=False,
    model={"hidden_size": 32, "pair_buckets": 512, "body_tokens": 30, "L_cycles": 1, "halt_max_steps": 2})


def with_reader(folder: Path) -> Recipe:
    """The same with a reader of one layer, which an encoder with random weights lends."""
    encoder = random_encoder((f"{m.subject} {m.body}" for m in sample_mailbox()), folder)
    return replace(TINY, warm_start=str(encoder), model=TINY.model | reader_shape(encoder) | {"reader_layers": 1, "reader_tokens": 20})


@pytest.mark.parametrize(("reads_closely", "saves_often"), [(False, False), (True, False), (False, True)],
    ids=["at a glance", "with a reader", "in the middle of an epoch"])
def test_stopped_training_gives_the_same_weights(reads_closely: bool, saves_often: bool, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in its second epoch and started again, a training ends with the weights of one that was never stopped."""
    manager = EmailDatasetManager("sample").load()
    parts = {p: to_mails(f) for p, f in manager.split("random", 0).parts.items()}
    recipe = with_reader(tmp_path / "encoder") if reads_closely else TINY

    def train(folder: Path) -> trainer.Trained:
        saving = [Saving(minutes=0)] if saves_often and folder.name == "stopped" else []
        return train_categories(parts["train"][:256], parts["validation"], manager.taxonomy.names, recipe, folder, seed=3, callbacks=saving)

    whole = train(tmp_path / "whole")
    step = TRMTrainer.training_step

    def stops(self: TRMTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == 6:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TRMTrainer, "training_step", stops)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "stopped")
    assert Path(newest_checkpoint(tmp_path / "stopped") or "").name == ("checkpoint-6" if saves_often else "checkpoint-4")
    again = train(tmp_path / "stopped")
    scores = [[h["eval_macro_f1"] for h in t.history if "eval_macro_f1" in h] for t in (whole, again)]
    assert scores[0] == scores[1] and len(scores[0]) == 3
    for (name, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_a_loss_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that turn to NaN, once: training goes back, halves its rate, and ends as well as ever. Again and again: a typed error."""
    manager = EmailDatasetManager("sample").load()
    parts = {p: to_mails(f) for p, f in manager.split("random", 0).parts.items()}
    step, left = TRMTrainer.training_step, [1]

    def spoils(self: TRMTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == 6 and left[0] > 0:
            left[0] -= 1
            with torch.no_grad():
                next(self.net.parameters()).fill_(torch.nan)
        return step(self, *args, **kwargs)

    def train(folder: Path) -> trainer.Trained:
        return train_categories(parts["train"][:256], parts["validation"], manager.taxonomy.names, TINY, folder, seed=3)

    monkeypatch.setattr(TRMTrainer, "training_step", spoils)
    trained = train(tmp_path / "once")
    fault = next(f for f in trained.faults if f["kind"] == "diverged")
    assert (fault["update"], fault["rate"]) == (6, TINY.learning_rate / 2)
    assert all(p.isfinite().all() for p in trained.model.parameters())
    assert sum("eval_macro_f1" in h for h in trained.history) == 3
    left[0] = 99
    with pytest.raises(TrainingError, match="diverged 4 times"):
        train(tmp_path / "always")


def test_what_is_lent_learns_slower(tmp_path: Path) -> None:
    """Every weight is in one group. The reader and its token table learn at their own rate, other tables faster and undecayed."""
    recipe = with_reader(tmp_path / "encoder")
    tokenizer = trainer.learn_vocabulary(sample_mailbox()[:100], recipe)
    model = trainer.build_model(recipe, tokenizer, ["a", "b"])
    learner = TRMTrainer(model=model, args=trainer.training_arguments(recipe, tmp_path, 0), eval_dataset=[], embedding_rate=6.0,
        reader_rate=0.3)
    groups = learner.create_optimizer().param_groups
    rates = {id(p): (g["lr"] / recipe.learning_rate, g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(rates) == sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    found = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert found["trm.embedding.token.weight"] == found["reader.layers.0.linear1.weight"] == pytest.approx((0.3, recipe.weight_decay))
    assert found["trm.embedding.pair.weight"] == pytest.approx((6.0, 0.0))
    assert found["classifier.weight"] == pytest.approx((1.0, recipe.weight_decay))


def test_a_reader_survives_saving(tmp_path: Path) -> None:
    """A saved model with a reader gives the same answers, alone and in a batch, and needs no encoder any more."""
    mails = [m for m in sample_mailbox() if m.category][:40]
    recipe = with_reader(tmp_path / "encoder")
    tokenizer = trainer.learn_vocabulary(mails, recipe)
    model = trainer.build_model(recipe, tokenizer, ["a", "b", "c"]).eval()
    model.config.halt_threshold = 1.0
    shutil.rmtree(tmp_path / "encoder")
    again = EmailClassifier(*load_model(save_model(model, tokenizer, tmp_path / "model")))
    said = EmailClassifier(model, tokenizer).predict_proba(mails)
    assert {p.steps for p in again.predict(mails)} == {2}
    assert np.allclose(again.predict_proba(mails), said, atol=1e-6)
    assert np.allclose(np.concatenate([again.predict_proba([m]) for m in mails]), said, atol=1e-5)
