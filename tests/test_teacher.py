"""A teacher that is killed goes on where it was."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from email_trm.mail.message import email_to_dict
from email_trm.mail.sample import sample_mailbox
from email_trm.training.checkpoints import damage, seal
from email_trm.training.teacher import teacher_text
from email_trm.trm.warm import random_encoder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Unlabelled mail, and an encoder of one layer with random weights."""
    folder, mails = tmp_path_factory.mktemp("teacher"), sample_mailbox()
    more = [replace(m, id=f"more-{m.id}", message_id=None, category=None, body=f"Hello again. {m.body}") for m in mails[:60]]
    (folder / "more.jsonl").write_text("\n".join(json.dumps(email_to_dict(m)) for m in more), encoding="utf-8")
    return folder / "more.jsonl", random_encoder((teacher_text(m) for m in mails), folder / "encoder")


def start(places: tuple[Path, Path], output: Path) -> subprocess.Popen[bytes]:
    """The command, as a user types it."""
    more, encoder = places
    options = {"--unlabelled": more, "--output": output, "--split": "random", "--encoder": encoder, "--epochs": 20}
    command = [sys.executable, "-m", "email_trm.training.teacher", *(str(x) for pair in options.items() for x in pair)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_teacher_goes_on(places: tuple[Path, Path], tmp_path: Path) -> None:
    """`kill -9` after the first checkpoint; the same command again goes on from it and finishes."""
    killed = start(places, tmp_path / "out")
    first = tmp_path / "out/encoder/checkpoint-100/trainer_state.json"
    deadline = time.monotonic() + 120
    while damage(first.parent) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not damage(first.parent) and not (tmp_path / "out/teacher.json").exists()
    state = json.loads(first.read_text(encoding="utf-8"))
    state["log_history"].append({"step": 100, "mark": 1.0}) # Only a training that goes on from here can carry it to the end
    first.write_text(json.dumps(state), encoding="utf-8")
    seal(first.parent)
    assert start(places, tmp_path / "out").wait() == 0
    last = max((tmp_path / "out/encoder").glob("checkpoint-*/trainer_state.json"), key=lambda p: int(p.parent.name.rpartition("-")[2]))
    assert any("mark" in entry for entry in json.loads(last.read_text(encoding="utf-8"))["log_history"])
    record = json.loads((tmp_path / "out/teacher.json").read_text(encoding="utf-8"))
    assert record["labelled_by_teacher"] == len(pd.read_parquet(tmp_path / "out/soft_labels.parquet")) > 0
