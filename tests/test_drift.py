"""`email-trm data drift`, through the installed command, on synthetic mail: exit codes, and no mail in what it prints."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
from forked import email_trm

from email_trm.mail.message import email_to_dict
from email_trm.mail.sample import sample_mailbox

DRIFT = ("data", "drift")
CANARY = "xylograph"  # In every subject, body and address below


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two halves of one mailbox, and its Turkish mail."""
    home = tmp_path_factory.mktemp("drift")
    mails = [replace(m, subject=f"{m.subject} {CANARY}", body=f"{m.body} {CANARY}", sender=f"{CANARY}@{i % 50}.example")
        for i, m in enumerate(sample_mailbox(500)) if m.folder != "sent"]
    parts = {"even": mails[::2], "odd": mails[1::2], "turkish": [m for m in mails if m.language == "tr"], "few": mails[:20]}
    for name, part in parts.items():
        (home / f"{name}.jsonl").write_text("\n".join(json.dumps(email_to_dict(m)) for m in part), encoding="utf-8")
    return home


@pytest.mark.parametrize(("new", "level", "code"), [("odd", "stable", 0), ("turkish", "large", 3)])
def test_drift_and_its_exit_code(boxes: Path, new: str, level: str, code: int) -> None:
    command = [*DRIFT, "even.jsonl", f"{new}.jsonl", "--gate", "--output", "d.json"]
    done = email_trm(*command, "--limit", "200", cwd=boxes)
    assert done.returncode == code, done.stderr.decode()
    found = json.loads((boxes / "d.json").read_text(encoding="utf-8"))
    assert found["level"] == level and found["confidence"]["old"] > 0
    for text in (done.stdout, done.stderr, (boxes / "d.json").read_bytes()):
        assert CANARY.encode() not in text
    assert b"\x1b[" not in done.stdout  # No colours into a pipe


def test_too_few_mails_are_refused(boxes: Path) -> None:
    command = [*DRIFT, "even.jsonl", "few.jsonl", "--no-model"]
    done = email_trm(*command, cwd=boxes)
    assert done.returncode == 4 and b"too few" in done.stderr
