"""A training that was stopped goes on where it was."""

from pathlib import Path

import pytest
import torch

from email_trm.data.manager import EmailDatasetManager
from email_trm.data.schema import to_mails
from email_trm.training import trainer
from email_trm.training.trainer import Recipe, TRMTrainer, newest_checkpoint, train_categories

TINY = Recipe(epochs=3, batch_size=64, vocab_size=800, ema=0.9, evidence=False,
    model={"hidden_size": 32, "pair_buckets": 512, "body_tokens": 30, "L_cycles": 1, "halt_max_steps": 2})


def test_stopped_training_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in its second epoch and started again, a training ends with the weights of one that was never stopped."""
    manager = EmailDatasetManager("sample").load()
    parts = {p: to_mails(f) for p, f in manager.split("random", 0).parts.items()}

    def train(folder: Path) -> trainer.Trained:
        return train_categories(parts["train"][:256], parts["validation"], manager.taxonomy.names, TINY, folder, seed=3)

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
    assert Path(newest_checkpoint(tmp_path / "stopped") or "").name == "checkpoint-4"
    again = train(tmp_path / "stopped")
    scores = [[h["eval_macro_f1"] for h in t.history if "eval_macro_f1" in h] for t in (whole, again)]
    assert scores[0] == scores[1] and len(scores[0]) == 3
    for (name, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
