"""What ends a training from outside costs nothing but the updates since its last checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from email_trm.evaluation.reliability import torment
from email_trm.serving.classifier import EmailClassifier
from email_trm.training.checkpoints import newest_checkpoint

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def email_trm(*words: object) -> subprocess.Popen[str]:
    """The command, as a user types it."""
    command = [sys.executable, "-c", "from email_trm.cli.cli import main; main()", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)


def until(process: subprocess.Popen[str], folder: Path) -> None:
    """Wait for a whole checkpoint."""
    deadline = time.monotonic() + 180
    while newest_checkpoint(folder / "checkpoints/warmup") is None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1][-2000:]


def test_a_full_disk_and_a_loss_that_is_no_number() -> None:
    """After a real full disk (tmpfs) the weights are the same. After a loss that is no number training ends, and ends well."""
    found = torment("sample", 150, 1, seed=1, kinds=("disk", "nan"), log=lambda line: None)
    by_fault = {o["fault"]: o for o in found["outcomes"]}
    worse = by_fault["loss not a number"]["ended"]
    assert worse["faults"] == ["diverged"]
    assert worse["macro_f1"] > found["reference"]["macro_f1"] - 0.2 > 0.1
    if found["skipped"]:
        pytest.skip(found["skipped"]["disk"])
    assert by_fault["disk full"]["same"]
    assert by_fault["disk full"]["lives"] == 2


def test_train_stop_kill_resume(tmp_path: Path) -> None:
    """`email-trm train` is asked to stop, goes on, is killed, goes on, and leaves a model. The doctor says each time how it stands."""
    run = tmp_path / "run"
    first = email_trm("train", "--output", run, "--size", "S", "--strategy", "phases")
    until(first, run)
    first.send_signal(signal.SIGTERM)
    said = first.communicate()[1]
    assert first.returncode == 130 and "training was stopped after update" in said, said[-1000:]
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    refused = email_trm("train", "--output", run)
    assert "--resume run" in refused.communicate()[1] and refused.returncode == 2
    killed = email_trm("train", "--resume", run)
    deadline = time.monotonic() + 120
    while json.loads((run / "run.json").read_text())["status"] != "running" and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(3)
    killed.kill()
    killed.communicate()
    doctor = email_trm("doctor", run)
    assert "was killed" in doctor.communicate()[0] and doctor.returncode == 0
    last = email_trm("train", "--resume", run)
    out, said = last.communicate()
    assert last.returncode == 0, said[-2000:]
    assert "SYNTHETIC test part" in out
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert not list(run.rglob("checkpoint-*"))
    assert EmailClassifier.from_pretrained(run)
