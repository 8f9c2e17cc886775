"""What ends a training from outside costs nothing but the updates since its last checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from email_trm.core.errors import ConfigError, ResourceError
from email_trm.evaluation.reliability import failures, small_disk, torment
from email_trm.serving.classifier import EmailClassifier
from email_trm.training.checkpoints import SealedTrainer, newest_checkpoint, step_of
from email_trm.training.doctor import examine
from email_trm.training.orchestrator import RunSettings, open_run

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def email_trm(*words: object) -> subprocess.Popen[str]:
    """The command, as a user types it."""
    command = [sys.executable, "-c", "from email_trm.cli.cli import main; main()", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)


def until(process: subprocess.Popen[str], folder: Path) -> None:
    """Wait for a whole checkpoint of a phase."""
    deadline = time.monotonic() + 240
    while newest_checkpoint(folder) is None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1][-2000:]
    assert newest_checkpoint(folder)


@pytest.mark.slow
def test_three_kills() -> None:
    """Killed in an update, while saving and during evaluation, a training ends with the same weights, and little is done twice."""
    found = torment("sample", 150, 1, seed=1, kinds=("kill",), log=lambda line: None)
    assert failures(found) == []
    killed = found["outcomes"][0]
    assert killed["same"] and killed["times"] == len(killed["lost"]) >= 2 and max(killed["resumed"]) > 0


@pytest.mark.slow
def test_all_faults() -> None:
    """The same, after every fault there is."""
    found = torment("sample", 150, 1, seed=2, log=lambda line: None)
    assert failures(found) == []
    assert len(found["outcomes"]) + len(found["skipped"]) == 7


class Line(torch.nn.Module):
    """Weights that learn to be one, and fill a small disk."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(100_000))

    def forward(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Squared error."""
        return {"loss": (self.w - labels.mean()).pow(2).mean(), "logits": labels}


def learn(folder: Path, callbacks: Sequence[TrainerCallback] = ()) -> torch.Tensor:
    """Train that, or go on."""
    torch.manual_seed(0)
    rows = [{"labels": torch.full((1,), float(n % 3))} for n in range(16)]
    args = TrainingArguments(output_dir=str(folder), num_train_epochs=4, per_device_train_batch_size=4, eval_strategy="epoch",
        save_strategy="epoch", load_best_model_at_end=True, disable_tqdm=True, use_cpu=True, logging_strategy="no", report_to="none",
        learning_rate=0.1)
    trainer = SealedTrainer(model=Line(), args=args, train_dataset=rows, eval_dataset=rows, callbacks=list(callbacks))
    newest = newest_checkpoint(folder)
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    return trainer.model.w.detach()


def test_a_full_disk(tmp_path: Path) -> None:
    """A disk that is really full stops training with a typed error. With room again it ends with the same weights."""

    class Fills(TrainerCallback):
        """Another program, after the second epoch."""

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Take all there is."""
            if state.epoch == 2:
                with suppress(OSError), (disk / "holiday.mov").open("wb", buffering=0) as out:
                    while True:
                        out.write(bytes(65536))

    whole = learn(tmp_path / "whole")
    try:
        with small_disk(12) as disk:
            with pytest.raises(ResourceError, match="disk is full"):
                learn(disk / "run", [Fills()])
            assert step_of(newest_checkpoint(disk / "run") or "0-0") == 4
            (disk / "holiday.mov").unlink()
            assert torch.equal(learn(disk / "run"), whole)
    except ConfigError as error:
        pytest.skip(error.cause)


@pytest.mark.slow
def test_train_stop_resume(tmp_path: Path) -> None:
    """`email-trm train` is asked to stop, goes on, and leaves a model. The doctor says how it stands."""
    run, phases = tmp_path / "run", tmp_path / "run/checkpoints"
    first = email_trm("train", "--output", run, "--size", "S", "--strategy", "phases")
    until(first, phases / "warmup")
    first.send_signal(signal.SIGTERM)
    said = first.communicate()[1]
    assert first.returncode == 130 and "training was stopped after" in said, said[-1000:]
    assert f"--resume {run}" in said
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    with pytest.raises(ConfigError, match=f"--resume {run}"):
        open_run(run, RunSettings())
    assert "was stopped" in examine(run)[0].what and f"--resume {run}" in examine(run)[0].remedy
    assert len(list((phases / "warmup").glob("checkpoint-*"))) >= 1
    last = email_trm("train", "--resume", run)
    out, said = last.communicate()
    assert last.returncode == 0, said[-2000:]
    assert "SYNTHETIC test part" in out
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert not list(run.rglob("checkpoint-*"))
    assert EmailClassifier.from_pretrained(run)
