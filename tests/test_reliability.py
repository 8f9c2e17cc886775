"""What ends a training from outside costs nothing but the updates since its last checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from email_trm.core.errors import ConfigError
from email_trm.evaluation.reliability import failures, torment
from email_trm.serving.classifier import EmailClassifier
from email_trm.training.checkpoints import newest_checkpoint
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


def test_kills_a_full_disk_and_a_loss_that_is_no_number() -> None:
    """After three kills, and after a real full disk (tmpfs), weights are the same and little is done twice. NaN costs only the rate."""
    found = torment("sample", 150, 1, seed=1, kinds=("kill", "disk", "nan"), log=lambda line: None)
    assert failures(found) == []
    by_fault = {o["fault"]: o for o in found["outcomes"]}
    worse = by_fault["loss not a number"]["ended"]
    assert "diverged" in worse["faults"]
    assert worse["macro_f1"] > found["reference"]["macro_f1"] - 0.2 > 0.1
    killed = next(o for fault, o in by_fault.items() if fault.startswith("killed"))
    assert killed["same"] and killed["times"] == len(killed["lost"]) >= 2 and max(killed["resumed"]) > 0
    if found["skipped"]:
        pytest.skip(found["skipped"]["disk"])
    assert by_fault["disk full"]["same"] and by_fault["disk full"]["resumed"] > [0]


def test_train_stop_kill_resume(tmp_path: Path) -> None:
    """`email-trm train` is asked to stop, goes on, is killed, goes on, and leaves a model. The doctor says how it stands."""
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
    killed = email_trm("train", "--resume", run)
    until(killed, phases / "main")
    killed.kill()
    killed.communicate()
    assert "was killed" in examine(run)[0].what and f"--resume {run}" in examine(run)[0].remedy
    warmed = (phases / "warmup/weights.safetensors").stat().st_mtime_ns
    last = email_trm("train", "--resume", run)
    while last.poll() is None and (phases / "warmup/weights.safetensors").exists():
        assert (phases / "warmup/weights.safetensors").stat().st_mtime_ns == warmed  # That phase is not trained again
        time.sleep(0.2)
    out, said = last.communicate()
    assert last.returncode == 0, said[-2000:]
    assert "SYNTHETIC test part" in out
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert not list(run.rglob("checkpoint-*"))
    assert EmailClassifier.from_pretrained(run)
