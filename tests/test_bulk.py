"""Shards scored in bulk: killed and resumed, broken and empty, here and on Ray with the same answers."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from email_trm.core.errors import ConfigError
from email_trm.data.store import write_mails
from email_trm.mail.sample import sample_mailbox
from email_trm.serving.bulk import BulkResult, score_parquet
from email_trm.serving.models import load_served

CANARY = "kanarya-4711"  # Stands for a word of somebody's mail
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'email-trm[ray]'")
RUN = """
import json, sys
from email_trm.serving.bulk import score_parquet
source, output, engine, workers = sys.argv[1:]
result = score_parquet(source, output, engine=engine, workers=int(workers) or None, progress=lambda r: print(r.name, r.status, flush=True))
print(json.dumps(result.record()))
"""


def write_shards(folder: Path, sizes: tuple[int, ...]) -> Path:
    """Shards of the synthetic mailbox."""
    mails = sample_mailbox(sum(sizes))
    for number, size in enumerate(sizes):
        start = sum(sizes[:number])
        write_mails(mails[start:start + size], folder / f"part-{number}.parquet")
    return folder


def write_broken(folder: Path) -> None:
    """Three shards nobody should write: no table, text that is no text, and rows of which one is no mail. All hold the canary."""
    (folder / "x-garbage.parquet").write_bytes(CANARY.encode())
    text = pa.array([f"{CANARY} \xff".encode("latin-1")], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": ["a"], "body": text}), folder / "x-latin.parquet")
    rows = [{"id": "a", "body": CANARY, "labels": ["x"]}, {"id": "b", "body": CANARY, "labels": [None]}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "x-rows.parquet")


def command(source: Path, output: Path, engine: str = "local", workers: int = 0) -> list[str]:
    """A process that scores shards and says so."""
    return [sys.executable, "-c", RUN, str(source), str(output), engine, str(workers)]


def read(folder: Path) -> pd.DataFrame:
    """All answers, by shard."""
    return pd.concat([pq.read_table(p).to_pandas() for p in sorted(folder.glob("*.parquet"))], ignore_index=True)


def same_answers(one: Path, other: Path) -> None:
    """Rows, categories, steps and languages are equal, probabilities to 1e-5."""
    a, b = read(one), read(other)
    numbers = [c for c in a.columns if c.startswith("p_") or c == "confidence"]
    assert len(a) and list(a.columns) == list(b.columns)
    assert a.drop(columns=numbers).equals(b.drop(columns=numbers))
    assert np.abs(a[numbers].to_numpy() - b[numbers].to_numpy()).max() < 1e-5


def statuses(result: BulkResult) -> dict[str, str]:
    """Shard -> status."""
    return {s.name: s.status for s in result.shards}


def test_killed_and_resumed(tmp_path: Path) -> None:
    """`kill -9` after the first shard: what is there is whole, the next run keeps it, does the rest and leaves no hidden file."""
    source = write_shards(tmp_path / "mails", (10, 160, 10))
    process = subprocess.Popen(command(source, tmp_path / "answers"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().split() == ["part-0.parquet", "done"]
    deadline = time.monotonic() + 30
    while not list((tmp_path / "answers").glob(".part-1*.partial")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list((tmp_path / "answers").glob(".*.partial"))) == 1  # Killed in the middle of the second
    assert [p.name for p in (tmp_path / "answers").glob("*.parquet")] == ["part-0.parquet"]
    first = (tmp_path / "answers/part-0.parquet").stat().st_mtime_ns
    result = score_parquet(source, tmp_path / "answers")
    assert statuses(result) == {"part-0.parquet": "kept", "part-1.parquet": "done", "part-2.parquet": "done"}
    assert (tmp_path / "answers/part-0.parquet").stat().st_mtime_ns == first
    assert sorted(os.listdir(tmp_path / "answers")) == ["part-0.parquet", "part-1.parquet", "part-2.parquet"]
    score_parquet(source, tmp_path / "whole")
    same_answers(tmp_path / "answers", tmp_path / "whole")


def test_changed_shard_or_model_is_scored_again(tmp_path: Path) -> None:
    """Old answers are kept only for the same shard and the same model."""
    source = write_shards(tmp_path / "mails", (10, 10))
    score_parquet(source, tmp_path / "answers")
    write_mails(sample_mailbox(30)[:12], source / "part-1.parquet")
    assert statuses(score_parquet(source, tmp_path / "answers")) == {"part-0.parquet": "kept", "part-1.parquet": "done"}
    served = load_served()
    served.classifier.model.config.temperature *= 1.5
    served.classifier.save_pretrained(tmp_path / "other")
    result = score_parquet(source, tmp_path / "answers", tmp_path / "other")
    assert set(statuses(result).values()) == {"done"}
    assert read(tmp_path / "answers")["model"].nunique() == 1 and read(tmp_path / "answers")["model"][0] != served.version


def test_broken_and_empty_shards(tmp_path: Path) -> None:
    """Each is counted by its own cause, none quotes a mail, and the others go on."""
    source = write_shards(tmp_path / "mails", (20, 0))
    write_broken(source)
    result = score_parquet(source, tmp_path / "answers")
    done = {"part-0.parquet": "done", "part-1.parquet": "done", "x-rows.parquet": "done"}
    assert statuses(result) == {"x-garbage.parquet": "failed", "x-latin.parquet": "failed", **done}
    assert result.mails == 21 and sum(result.refused.values()) == 1 and result.count("failed") == 2
    assert CANARY not in json.dumps(result.record())
    assert all(s.cause for s in result.shards if s.status == "failed")
    assert len(pq.read_table(tmp_path / "answers/part-1.parquet")) == 0
    assert len(read(tmp_path / "answers")) == 21
    again = score_parquet(source, tmp_path / "answers")
    assert again.count("kept") == 3 and again.refused == result.refused and again.mails == 0


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra that has it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    with pytest.raises(ConfigError, match="ray is not installed") as error:
        score_parquet(write_shards(tmp_path / "mails", (5,)), tmp_path / "answers", engine="ray")
    assert "email-trm[ray]" in error.value.remedy


@needs_ray
@pytest.mark.slow
def test_ray_gives_the_answers_of_the_local_engine(tmp_path: Path) -> None:
    """Two workers on this machine: same rows, same answers, throughput of each worker; broken shards are values; no log holds a word."""
    source = write_shards(tmp_path / "mails", (150, 150, 150, 150, 0))
    write_broken(source)
    before = set(Path("/tmp/ray").glob("session_2*"))
    ran = subprocess.run(command(source, tmp_path / "ray", "ray", 2), capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    local = score_parquet(source, tmp_path / "local")
    same_answers(tmp_path / "ray", tmp_path / "local")
    assert {s["name"]: s["status"] for s in found["shards"]} == statuses(local)
    assert found["mails"] == local.mails and found["refused"] == local.refused
    assert len(found["workers"]) == 2 and sum(w["mails"] for w in found["workers"]) == found["mails"]
    assert all(w["mails_per_second"] > 0 for w in found["workers"])
    (session,) = {s for s in Path("/tmp/ray").glob("session_2*") if not s.is_symlink()} - before
    logs = [p for p in session.rglob("*") if p.is_file()]
    assert len(logs) > 5 and not [p for p in logs if CANARY.encode() in p.read_bytes()]
    assert CANARY not in ran.stdout + ran.stderr


@needs_ray
@pytest.mark.slow
def test_ray_goes_on_after_a_killed_worker(tmp_path: Path) -> None:
    """A worker process is killed while it scores: another takes its shard, and nothing is missing."""
    source = write_shards(tmp_path / "mails", (40, 600, 600))
    process = subprocess.Popen(command(source, tmp_path / "ray", "ray", 1), stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "ray").glob(".part-1*.partial")) and time.monotonic() < deadline:
        time.sleep(0.01)
    worker = next(int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and holds(p, tmp_path / "ray"))
    os.kill(worker, signal.SIGKILL)
    out, _ = process.communicate(timeout=200)
    found = json.loads(out.splitlines()[-1])
    assert process.returncode == 0 and {s["status"] for s in found["shards"]} == {"done"}
    assert len({s["worker"] for s in found["shards"]}) == 2
    score_parquet(source, tmp_path / "local")
    same_answers(tmp_path / "ray", tmp_path / "local")


def holds(process: Path, folder: Path) -> bool:
    """Whether a process of /proc has a file of the folder open."""
    try:
        return any(os.readlink(link).startswith(str(folder)) for link in (process / "fd").iterdir())
    except OSError:
        return False
