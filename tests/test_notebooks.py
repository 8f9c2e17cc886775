"""Every notebook is a test: it runs from top to bottom, and each of its asserts holds.

Each runs in a process of its own, so that no working directory, signal handler, random state or open figure leaks into the next,
and so that a notebook that hangs can be stopped. nbs/pipelines is left out: papermill runs those.
"""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
LIMIT = 240  # seconds for one notebook
FLAGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["nbdev"]["tst_flags"].split()
SERVER = """
import json, os, sys
import matplotlib.pyplot, pandas, pandera, seaborn, sklearn, torch
from nbdev.test import test_nb
from transformers import AutoModel, Trainer
for line in sys.stdin:
    path, folder, log, flags, base, limit = json.loads(line)
    pid = os.fork()
    if not pid:
        os.setsid()
        os.chdir(folder)
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number, opened in ((0, os.open(os.devnull, os.O_RDONLY)), (1, written), (2, written)): os.dup2(opened, number)
        passed = False
        try: passed, _ = test_nb(path, skip_flags=flags, basepath=base, cell_timeout=limit)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(not passed)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def notebooks(nbs: Path = NBS) -> list[Path]:
    """The notebooks that are tests, in reading order."""
    found = [p for p in sorted(nbs.rglob("*.ipynb")) if p.relative_to(nbs).parts[0] != "pipelines"]
    return [p for p in found if not any(part.startswith((".", "_")) for part in p.relative_to(nbs).parts)]


def shorten(text: str, head: int = 6000, tail: int = 1500) -> str:
    """A log without colours, and without the middle if it is long: the traceback is at its head, the last words at its tail."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).strip()
    return text if len(text) <= head + tail else f"{text[:head]}\n... {len(text) - head - tail} characters left out ...\n{text[-tail:]}"


@cache
def server() -> subprocess.Popen[str]:
    """A process that has imported the large libraries and forks for each notebook: importing them takes longer than most notebooks."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", SERVER], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def run_notebook(path: Path, limit: float = LIMIT) -> str:
    """Run one notebook in a new process. Returns an empty string, or what went wrong with the traceback of the failing cell."""
    serving = server()
    assert serving.stdin and serving.stdout
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        serving.stdin.write(json.dumps([str(path), str(path.parent), str(log), FLAGS, str(ROOT), limit]) + "\n")
        serving.stdin.flush()
        pid = int(serving.stdout.readline())
        overdue = threading.Event()

        def stop() -> None:
            overdue.set()
            os.killpg(pid, signal.SIGKILL)  # the notebook's own children too

        clock = threading.Timer(limit, stop)
        clock.start()
        code = int(serving.stdout.readline())
        clock.cancel()
        output = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if overdue.is_set():
        return f"{path.name} did not finish within {limit:.0f} s; it was stopped.\n{shorten(output)}"
    return "" if code == 0 else f"{path.name} failed (exit code {code}).\n{shorten(output)}"


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: p.relative_to(NBS).with_suffix("").as_posix())
def test_notebook(path: Path) -> None:
    """The notebook runs, and its asserts hold."""
    problem = run_notebook(path)
    if problem:
        pytest.fail(problem, pytrace=False)


def write_notebook(path: Path, *sources: str) -> Path:
    """A notebook with these code cells."""
    empty = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    cells = [empty | {"id": f"c{n}", "source": source} for n, source in enumerate(sources)]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return path


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A folder that nbdev takes for a project."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n[tool.nbdev]\nlib_path = "x"\n', encoding="utf-8")
    return tmp_path


def test_failing_cell_is_shown(scratch: Path) -> None:
    """A failing notebook fails, and says where."""
    problem = run_notebook(write_notebook(scratch / "bad.ipynb", "x = 1", "assert x == 2, 'x is not two'"))
    assert "AssertionError" in problem and "x is not two" in problem and "assert x == 2" in problem


def test_flagged_cells_are_skipped(scratch: Path) -> None:
    """`#| slow` and `#| notest` cells are left out; without a flag the same cell would fail."""
    assert run_notebook(write_notebook(scratch / "slow.ipynb", "#| slow\n1 / 0", "#| notest\n1 / 0")) == ""
    assert "ZeroDivisionError" in run_notebook(write_notebook(scratch / "plain.ipynb", "1 / 0"))


def test_hanging_notebook_is_stopped(scratch: Path) -> None:
    """The time limit holds."""
    assert "did not finish" in run_notebook(write_notebook(scratch / "hang.ipynb", "import time", "time.sleep(60)"), limit=6)
