"""Guides, concepts and questions keep their word: blocks of code run, numbers are the reports', links lead somewhere.

Importing PyTorch takes longer than most commands. So `email-trm` on the PATH of these blocks is a small client: it hands its arguments,
folder, environment and three streams to a process that has imported everything, which forks and runs `email_trm.cli.cli.main`. Blocks of
Python are run there, too.
"""
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import guides
import pytest
from readme import LINK, LOCAL, outside_fences

ROOT = Path(__file__).resolve().parent.parent
PAGES = list(guides.pages())
LIMIT = 240  # Seconds for one block
SERVER = """
import json, os, signal, socket, sys
def serve(place):
    import torch, transformers, sklearn.svm, pandas, pyarrow.parquet
    import email_trm.cli.cli, email_trm.serving.classifier, email_trm.serving.triage, email_trm.serving.bundle, email_trm.mail.readers
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(place)
        door.listen(8)
        while True:
            line, _ = door.accept()
            if os.fork():
                line.close()
                continue
            door.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            text, streams, _, _ = socket.recv_fds(line, 1_000_000, 3)
            asked = json.loads(text)
            os.chdir(asked["folder"])
            os.environ.clear()
            os.environ.update(asked["environment"])
            for number, stream in enumerate(streams): os.dup2(stream, number)
            sys.argv, code = ["email-trm", *asked["arguments"]], 0
            try:
                if sys.argv[1:2] == ["--python"]: exec(compile(sys.argv[2], "block", "exec"), {"__name__": "__main__"})
                else: email_trm.cli.cli.main()
            except SystemExit as end: code = end.code if isinstance(end.code, int) else 1 if end.code else 0
            except BaseException: sys.excepthook(*sys.exc_info()); code = 1
            for stream in (sys.stdout, sys.stderr): stream.flush()
            line.sendall(bytes([code]))
            os._exit(0)
if __name__ == "__main__": serve(sys.argv[1])
"""
CLIENT = """#!{python} -ISE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect({place!r})
    asked = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
    socket.send_fds(line, [json.dumps(asked).encode()], [0, 1, 2])
    code = line.recv(1)
sys.exit(code[0] if code else 134)
"""


# ---- what a page must have -------------------------------------------------------------------------------------------------
def test_every_page_has_a_place() -> None:
    """A page that no section names would never be built."""
    there = {p.relative_to(ROOT).as_posix() for folder in ("guides", "concepts") for p in (ROOT / "docs" / folder).glob("*.md")}
    assert there | {"docs/faq.md", "CHANGELOG.md"} == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_marks_and_numbers(name: str) -> None:
    """Each block of code is run or says why not; each number is what its report says."""
    assert guides.problems(ROOT, name) == []


@pytest.mark.parametrize("name", PAGES)
def test_page_form(name: str) -> None:
    """A title, one line below it, and marks that are understood."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.match(r"# \S.*\n\n> \S", text)
    left = re.findall(r"<!--.*?-->", outside_fences(guides.shown(ROOT, text), lambda line: line))
    assert left == [], "a mark that is not understood"


def slug(heading: str) -> str:
    """The address of a heading, as MyST and GitHub make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("name", PAGES)
def test_links(name: str) -> None:
    """Every relative link leads to a file of the repository, and to a heading that is there."""
    lines: list[str] = []
    outside_fences((ROOT / name).read_text(encoding="utf-8"), lambda line: lines.append(line) or line)
    for target in (m["target"] for line in lines for m in LINK.finditer(line)):
        path, _, fragment = target.partition("#")
        if path and not LOCAL.match(path):
            continue
        found = (ROOT / name).parent / path if path else ROOT / name
        assert found.is_file(), f"{target} is not there"
        if fragment and found.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in map(slug, headings), f"{target}: there is no such heading"


# ---- the machinery itself --------------------------------------------------------------------------------------------------
def test_unmarked_blocks_are_found() -> None:
    """No mark, no reason, no language, a mark one paragraph too early: each is named. Text needs no mark."""
    assert len(guides.unmarked("```sh\nls\n```")) == 1
    assert len(guides.unmarked("<!-- not run -->\n```sh\nls\n```")) == 1
    assert len(guides.unmarked("```\nls\n```")) == 1
    assert len(guides.unmarked("<!-- run -->\nwords\n```sh\nls\n```")) == 1
    assert len(guides.unmarked("<!-- run -->\n```toml\na = 1\n```")) == 1
    assert guides.unmarked("<!-- run -->\n```sh\nls\n```\n\n<!-- not run: it waits -->\n\n```python\n1\n```\n```text\n1\n```") == []


def test_blocks() -> None:
    """A mark inside a block is text; the next block does not inherit it."""
    found = guides.blocks("<!-- run: exit 3 -->\n```sh\n<!-- run -->\n```\n```text\nb\n```")
    assert [(b.line, b.language, b.mark, b.said, b.code) for b in found] == [
        (2, "sh", "run", "exit 3", "<!-- run -->\n"), (5, "text", "", "", "b\n")]


def test_numbers(tmp_path: Path) -> None:
    """A wrong number, a lost place and a lost report are named; `corrected` puts the first right, and readers see no mark."""
    (tmp_path / "reports" / "x").mkdir(parents=True)
    numbers = {"a": [{"t": 0.5, "v": 0.1234}], "when": "2026-11-23T1", "i": {"low": 1, "high": 4}}
    (tmp_path / "reports" / "x" / "metrics.json").write_text(json.dumps(numbers), encoding="utf-8")
    right = "0.123<!-- = x a/t=0.5/v .3f --> 12.3 %<!-- = x a/0/v .1% --> 2026-11-23<!-- = x when [10 --> 1.5<!-- = x i/half .1f -->"
    assert guides.wrong_numbers(tmp_path, right) == [] and guides.shown(tmp_path, right) == "0.123 12.3 % 2026-11-23 1.5"
    wrong = right.replace("0.123<", "0.2<").replace("12.3", "15").replace("2026-11-23<", "2025-01-01<")
    assert len(guides.wrong_numbers(tmp_path, wrong)) == 3 and guides.corrected(tmp_path, wrong) == right
    assert len(guides.wrong_numbers(tmp_path, "1<!-- = x b .3f --> 1<!-- = y a .3f -->")) == 2


def matches(wanted: str, output: str, loose: bool) -> str:
    """The first line of `wanted` that the output lacks, in order; empty if it has them all."""
    even = lambda text: re.sub(r"\d+(?:[.,]\d+)*", "#", text) if loose else text
    lines = iter(even(output).split("\n"))
    for line in filter(str.strip, even(wanted).split("\n")):
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in line.split("…")))
        if not any(pattern.search(found) for found in lines):
            return line
    return ""


def test_matches() -> None:
    """Lines are looked for in order; … stands for anything, and numbers differ only where they may."""
    assert matches("a … c\nd", "x\na b c\ny\nd\n", False) == ""
    assert matches("d\na", "a\nd", False) == "a"
    assert matches("1 mail", "2 mail", False) == "1 mail" and matches("1 mail", "2,345.6 mail", True) == ""


# ---- running the blocks ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `email-trm` and `python`, for the PATH."""
    folder = tmp_path_factory.mktemp("bin")
    place, server, client = folder / "door", folder / "server.py", folder / "email-trm"
    server.write_text(SERVER, encoding="utf-8")
    client.write_text(CLIENT.format(python=sys.executable, place=str(place)), encoding="utf-8")
    client.chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, str(server), str(place)], env=environment, stdout=log, stderr=log)
    while not place.exists():
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.05)
    yield folder
    process.kill()
    process.wait()


def environment_of(home: Path, command: Path) -> dict[str, str]:
    """What blocks may rely on: the command, an empty home, no network."""
    found = {k: v for k, v in os.environ.items() if not k.startswith(("EMAIL_TRM", "RAY_", "XDG_")) and "proxy" not in k.lower()}
    return found | {"PATH": f"{command}:{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(home), "PYTHONPATH": str(ROOT),
        "COLUMNS": "120", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}


@pytest.mark.parametrize("name", [n for n in PAGES if any(b.mark == "run" for b in guides.blocks((ROOT / n).read_text(encoding="utf-8")))])
def test_blocks_run(name: str, command: Path, tmp_path: Path) -> None:
    """The blocks of a page, in order, in one folder: each ends as it says and prints what the page shows."""
    work, home, output = tmp_path / "work", tmp_path / "home", ""
    work.mkdir()
    home.mkdir()
    environment = environment_of(home, command)
    for block in guides.blocks((ROOT / name).read_text(encoding="utf-8")):
        where = f"{name}, line {block.line}"
        if block.mark == "file":
            (work / block.said).parent.mkdir(parents=True, exist_ok=True)
            (work / block.said).write_text(block.code, encoding="utf-8")
        elif block.mark == "run":
            how = ["sh", "-ec"] if block.language == "sh" else [str(command / "email-trm"), "--python"]
            done = subprocess.run([*how, block.code], cwd=work, env=environment, text=True, timeout=LIMIT, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            output, wanted = done.stdout, int((block.said or "exit 0").removeprefix("exit "))
            assert done.returncode == wanted, f"{where}: exit code {done.returncode}\n{output}"
        elif block.mark == "output":
            missing = matches(block.code, output, block.said == "numbers")
            assert not missing, f"{where}: nothing printed like {missing!r}\n{output}"
