"""Every notebook is a test: it runs from top to bottom, and each of its asserts holds.

Each runs in a process of its own, so that no working directory, signal handler, random state or open figure leaks into the next,
and so that a notebook that hangs can be stopped. nbs/pipelines is left out: papermill runs those.
"""
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from forked import run_python

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
LIMIT = 240  # seconds for one notebook
FLAGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["nbdev"]["tst_flags"].split()
TEST = """
import json, sys
from nbdev.test import test_nb
path, flags, base, limit = sys.argv[1:]
passed, _ = test_nb(path, skip_flags=json.loads(flags), basepath=base, cell_timeout=float(limit))
sys.exit(not passed)
"""


def notebooks(nbs: Path = NBS) -> list[Path]:
    """The notebooks that are tests, in reading order."""
    found = [p for p in sorted(nbs.rglob("*.ipynb")) if p.relative_to(nbs).parts[0] != "pipelines"]
    return [p for p in found if not any(part.startswith((".", "_")) for part in p.relative_to(nbs).parts)]


def shorten(text: str, head: int = 6000, tail: int = 1500) -> str:
    """A log without colours, and without the middle if it is long: the traceback is at its head, the last words at its tail."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).strip()
    return text if len(text) <= head + tail else f"{text[:head]}\n... {len(text) - head - tail} characters left out ...\n{text[-tail:]}"


def run_notebook(path: Path, limit: float = LIMIT) -> str:
    """Run one notebook in a new process. Returns an empty string, or what went wrong with the traceback of the failing cell."""
    try:
        done = run_python(TEST, str(path), json.dumps(FLAGS), str(ROOT), str(limit), cwd=path.parent, timeout=limit)
    except subprocess.TimeoutExpired as error:
        said = shorten(((error.output or b"") + (error.stderr or b"")).decode(errors="replace"))
        return f"{path.name} did not finish within {limit:.0f} s; it was stopped.\n{said}"
    said = shorten((done.stdout + done.stderr).decode(errors="replace"))
    return "" if done.returncode == 0 else f"{path.name} failed (exit code {done.returncode}).\n{said}"


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
