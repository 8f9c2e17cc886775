"""The dashboard reads what a training writes, while it writes it: half lines, growing files, kills, and a folder used again."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from email_trm.core.runs import write_json
from email_trm.training.doctor import read_lines, this_process

pytest.importorskip("anywidget", reason="widgets need the extra 'lab'")
from email_trm.widgets.training import RunView, Tail, TrainingWidget, dashboard, page_of, summary_of

pytestmark = pytest.mark.xdist_group("dashboard")
TRAIN = """
import sys
from dataclasses import replace
from pathlib import Path
import email_trm.serving.runs as runs
from email_trm.training.orchestrator import RunSettings

small = dict(hidden_size=64, pair_buckets=1024, body_tokens=40, H_cycles=1, L_cycles=1, halt_max_steps=2)
known = runs.recipe
runs.recipe = lambda *how: replace(known(*how), epochs=int(sys.argv[2]), batch_size=16, vocab_size=1500, model=small)
runs.train_run(Path(sys.argv[1]), RunSettings() if len(sys.argv) < 4 else None)
"""


def start(folder: Path, epochs: int, *more: str) -> subprocess.Popen:
    """A tiny training of the synthetic sample in a process of its own."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    return subprocess.Popen([sys.executable, "-c", TRAIN, str(folder), str(epochs), *more], env=env, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True)


def watch(view: RunView, process: subprocess.Popen, enough, seconds: float = 240.0) -> list[tuple[str, str]]:
    """Poll until `enough` is true, or the process is gone; the states and phases seen, each once."""
    seen: list[tuple[str, str]] = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        gone = process.poll() is not None
        view.poll()
        if (view.verdict.state, view.phase) not in seen:
            seen.append((view.verdict.state, view.phase))
        if enough() or gone:
            return seen
        time.sleep(0.05)
    raise AssertionError(f"it took too long: {seen}")


def lines(path: Path, *rows: dict | str) -> Path:
    """Append JSON lines, or text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as out:
        out.writelines(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    return path


# ---- one file --------------------------------------------------------------------------------------------------------------
def test_every_byte_by_byte(tmp_path: Path) -> None:
    """However a file is cut while it grows, each row is read once, whole."""
    rows = [{"step": k, "loss": 1 / k, "f1_günlük": 0.5} for k in range(1, 40)]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    tail, found = Tail(tmp_path / "progress.jsonl"), []
    for at in range(0, len(data), 7):
        with tail.path.open("ab") as out:
            out.write(data[at:at + 7])
        new, anew = tail.read()
        assert not anew
        found += new
    assert found == rows and tail.read() == ([], False)


@pytest.mark.parametrize("longer", [True, False])
def test_another_file_under_the_name(tmp_path: Path, longer: bool) -> None:
    """A file that was replaced is read from its beginning, also if it is longer than the old one was."""
    tail = Tail(lines(tmp_path / "a.jsonl", *({"step": k} for k in range(50))))
    assert len(tail.read()[0]) == 50
    tail.path.unlink()
    new = [{"other": k} for k in range(200 if longer else 3)]
    lines(tail.path, *new)
    assert tail.read() == (new, True)
    tail.path.unlink()
    assert tail.read() == ([], True)
    assert tail.read() == ([], False)


def test_lines_that_are_none(tmp_path: Path) -> None:
    """Torn lines, other JSON and bytes that are no text cost only themselves."""
    path = lines(tmp_path / "a.jsonl", {"step": 1}, '{"step": 2, "lo', "\n", "[1]\n", "NaN\n", '"x"\n', {"step": 3})
    with path.open("ab") as out:
        out.write(b"\xff\xfe{}\n" + b'{"step": 4}\n')
    assert Tail(path).read()[0] == [{"step": 1}, {"step": 3}, {"step": 4}]


def test_values_of_any_kind(tmp_path: Path) -> None:
    """Rows whose values are not what they should be are shown as far as they make sense."""
    home = tmp_path / "checkpoints" / "main"
    lines(home / "progress.jsonl", {"kind": "begin", "step": 0, "max_steps": "many"},
        {"kind": "update", "step": 5, "loss": None, "time": 7}, {"kind": "update", "step": 6, "loss": [1]},
        {"kind": "update", "step": 7, "loss": 0.5}, {"kind": "evaluation", "step": 7, "f1_a": "x", "f1_b": 0.5},
        '{"kind": "update", "step": NaN, "loss": Infinity}\n', {"kind": "update", "step": None})
    lines(home / "resources.jsonl", {"seconds": 1}, {"seconds": 2, "rss": "x", "temperature": None}, {"seconds": True, "cpu": 4})
    write_json(tmp_path / "run.json", {"status": "running", "settings": None, "process": {"id": "x"}})
    view = RunView(tmp_path)
    view.poll()
    page = page_of(view)
    json.dumps(page, allow_nan=False)
    assert page["charts"][0]["lines"][0]["points"] == [[7.0, 0.5]] and [c["name"] for c in page["categories"]] == ["b"]
    assert "update 7" in summary_of(page)


# ---- a run -----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunView, list]:
    """A real training in another process, watched from before it begins until it is over."""
    folder = tmp_path_factory.mktemp("real") / "run"
    view = RunView(folder)
    view.poll()
    assert view.verdict.state == "waiting"
    process, live = start(folder, 1), []
    def enough() -> bool:
        if view.verdict.state == "running" and any(part.updates for part in view.parts):
            live.append(page_of(view))
        return view.verdict.state == "finished"
    seen = watch(view, process, enough)
    assert process.wait(60) == 0, process.stderr.read()[-2000:]
    view.poll()
    assert live, "nothing was to be seen before it was over"
    return folder, view, seen


def test_a_real_training_is_seen_while_it_runs(trained: tuple[Path, RunView, list]) -> None:
    """It waits, reads, trains, scores and is finished; and the numbers are those the training keeps itself."""
    folder, view, seen = trained
    states = [state for state, _ in seen]
    assert states[-1] == "finished" and "running" in states and "stalled" not in states and "failed" not in states
    assert ("running", "main") in seen
    history = json.loads((folder / "metrics.json").read_text())["history"]
    want = [row for row in history if "eval_macro_f1" in row]
    assert [row["macro_f1"] for row in view.parts[0].scores] == [row["eval_macro_f1"] for row in want] and len(want) == 1
    named = {row["name"]: row["f1"] for row in page_of(view)["categories"]}
    f1 = {k.removeprefix("eval_f1_"): pytest.approx(v) for k, v in want[-1].items() if k.startswith("eval_f1_")}
    assert named == f1 and len(named) == 10
    updates = view.parts[0].updates
    assert sum(b["step"] - a["step"] for a, b in zip([{"step": 0}, *updates[:-1]], updates, strict=True)) == want[-1]["step"]
    spans = [b["step"] - a["step"] for a, b in zip([{"step": 0}, *updates[:-1]], updates, strict=True)]
    mean = sum(u["loss"] * n for u, n in zip(updates, spans, strict=True)) / sum(spans)
    assert mean == pytest.approx(next(row["loss"] for row in history if "loss" in row), abs=2e-3)  # no update is lost
    text = summary_of(page_of(view))
    assert "macro-F1" in text and "F1, weakest first" in text and "finished" in text


def test_polling_costs_little(trained: tuple[Path, RunView, list]) -> None:
    """A look that finds nothing new takes milliseconds."""
    _, view, _ = trained
    began = time.perf_counter()
    for _ in range(20):
        assert view.poll() == set()
    assert (time.perf_counter() - began) / 20 < 0.05


def test_journal_is_whole_and_says_no_word(trained: tuple[Path, RunView, list]) -> None:
    """Every line of the journal is JSON with numbers and short words."""
    path = trained[0] / "checkpoints" / "main" / "progress.jsonl"
    rows = read_lines(path)
    assert len(rows) == len(path.read_text().splitlines()) and {"begin", "update", "evaluation", "end"} == {row["kind"] for row in rows}
    assert all(isinstance(v, (int, float)) for row in rows for k, v in row.items() if k not in ("kind", "time"))


@pytest.mark.slow
def test_kill_and_resume(tmp_path: Path) -> None:
    """A killed training is seen to be dead; the same view follows the one that goes on, and shows no update twice."""
    folder = tmp_path / "run"
    view = RunView(folder, patience=3.0)
    process = start(folder, 2)
    watch(view, process, lambda: any(part.scores for part in view.parts) and len(view.parts[0].updates) > 1)
    assert process.poll() is None, process.stderr.read()[-2000:]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    ends = time.monotonic() + 30
    while view.verdict.state != "stalled" and time.monotonic() < ends:
        view.poll()
        time.sleep(0.1)
    assert view.verdict.state == "stalled" and "killed" in view.verdict.said
    again = start(folder, 2, "resume")
    seen = watch(view, again, lambda: view.verdict.state == "finished")
    assert again.wait(60) == 0, again.stderr.read()[-2000:]
    view.poll()
    assert view.verdict.state == "finished" and ("running", "main") in seen
    for rows in (view.parts[0].updates, view.parts[0].scores):
        steps = [row["step"] for row in rows]
        assert steps == sorted(set(steps))
    assert len(view.parts[0].scores) == 2
    fresh = RunView(folder)
    fresh.poll()
    assert page_of(fresh)["charts"] == page_of(view)["charts"]  # whoever comes later sees the same


def test_a_folder_used_again(tmp_path: Path) -> None:
    """Nothing of the old training stays in the charts of the new one."""
    home = tmp_path / "checkpoints" / "main"
    write_json(tmp_path / "run.json", {"status": "finished"})
    lines(home / "progress.jsonl", {"kind": "begin", "step": 0},
        *({"kind": "update", "step": k, "loss": 9.0} for k in range(1, 30)), {"kind": "end", "step": 29})
    lines(home / "resources.jsonl", *({"seconds": k, "rss": 10**9} for k in range(9)))
    view = RunView(tmp_path)
    view.poll()
    for path in home.iterdir():
        path.unlink()
    write_json(tmp_path / "run.json", {"status": "running", "process": this_process()})
    assert view.poll() == {"state", "progress", "machine", "faults"} and view.verdict.state == "running" and not view.parts
    lines(home / "progress.jsonl", {"kind": "begin", "step": 0, "max_steps": 5}, {"kind": "update", "step": 1, "loss": 2.0})
    assert view.poll() == {"progress"}
    chart = page_of(view)["charts"]
    assert chart[0]["lines"][0]["points"] == [[1.0, 2.0]] and not any(line["points"] for c in chart[4:] for line in c["lines"])


# ---- the widget ------------------------------------------------------------------------------------------------------------
def test_widget_follows_and_stops(tmp_path: Path) -> None:
    """The page grows with the files; after `close` nobody looks any more."""
    home = tmp_path / "run" / "checkpoints" / "main"
    widget = dashboard(tmp_path / "run", every=0.1)
    assert widget.page["state"] == "waiting"
    write_json(tmp_path / "run" / "run.json", {"status": "running", "process": this_process()})
    lines(home / "progress.jsonl", {"kind": "begin", "step": 0, "max_steps": 5},
        {"kind": "update", "step": 1, "loss": 2.0}, '{"kind": "upd')
    ends = time.monotonic() + 20
    while widget.page["state"] != "running" or not widget.page["charts"][0]["lines"][0]["points"]:
        assert time.monotonic() < ends
        time.sleep(0.02)
    lines(home / "progress.jsonl", 'ate", "step": 2, "loss": 1.0}\n')
    while len(widget.page["charts"][0]["lines"][0]["points"]) < 2:
        assert time.monotonic() < ends
        time.sleep(0.02)
    assert widget.summary().startswith("run: running, in phase main")
    assert str(tmp_path) not in json.dumps(widget.get_state(), default=str)  # a notebook saves this
    widget.close()
    widget.watcher.thread.join(5)
    looks = widget.watcher.looks
    time.sleep(0.4)
    assert widget.watcher.looks == looks and not widget.watcher.thread.is_alive()


def test_a_look_that_fails_is_not_the_last(tmp_path: Path) -> None:
    """A disk that is away for a moment does not end the watching."""
    class Away(RunView):
        def poll(self) -> set[str]:
            if widget.watcher.looks in (2, 3):
                raise OSError("away")
            return super().poll()

    view = RunView(tmp_path)
    widget = TrainingWidget(view, every=0.1)
    widget.watcher.view.__class__ = Away
    ends = time.monotonic() + 20
    while widget.watcher.looks < 6:
        assert time.monotonic() < ends
        time.sleep(0.02)
    assert widget.watcher.thread.is_alive()
    widget.close()
