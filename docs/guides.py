"""The pages that are no notebooks: guides, concepts, questions and the changelog. What they claim is checked here.

Marks are HTML comments, which no reader of a page sees:

    <!-- run -->                above a block of sh or python: tests/test_guides.py runs it, in order, in one folder per page
    <!-- run: exit 3 -->        ... and wants this exit code
    <!-- not run: reason -->    ... is not run; the page says so, with the reason
    <!-- file: rules.toml -->   above any block: it is that file for the blocks that follow
    <!-- output -->             above a block of text: these lines were printed by the block before; … stands for anything
    <!-- output: numbers -->    ... and numbers may differ
    <!-- drawing: trm -->       a drawing of docs/drawings.py
    0.789<!-- = categories models/EmailTRM/group/accuracy .3f -->    a number, its file below reports/, its place there, its form

python docs/guides.py           names numbers that are not what the reports say
python docs/guides.py --write   puts them right
"""
import argparse
import json
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from drawings import drawing

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = {
    "Start": ["guides/quick-start", "faq"],
    "Guides": [f"guides/{name}" for name in
        ("jupyterlab", "gmail-takeout", "maildir", "nightly", "own-categories", "turkish", "scaling-out", "serving")],
    "Concepts": [f"concepts/{name}" for name in ("trm", "halting", "calibration", "stages")],
}  # Caption in the side bar -> pages under docs/, in order
CHANGELOG = "CHANGELOG.md"
MUST = ("sh", "python", "ini")  # Languages whose blocks must have a mark
MARK = re.compile(r"^<!-- (run|not run|file|output|drawing)(?:: (.+?))? -->$")
FENCE = re.compile(r"^(`{3,}|~{3,})(\S*)\s*$")
NUMBER = re.compile(r"(?P<shown>\d{4}-\d\d-\d\d|[-+−]?[\d.,]*\d(?: ?%)?)<!-- = (?P<file>\S+) (?P<place>.+?) (?P<form>\S+) -->")


@dataclass
class Block:
    """A fenced block of code."""

    line: int  # Of its fence, from 1
    language: str
    mark: str = ""  # run, not run, file, output, or nothing
    said: str = ""  # What follows the mark's colon
    lines: list[str] = field(default_factory=list)

    @property
    def code(self) -> str:
        """The text between the fences."""
        return "\n".join(self.lines) + "\n"


def pages(root: Path = ROOT) -> dict[str, str]:
    """Every page and its place in the site: `docs/guides/maildir.md` -> `guides/maildir.md`."""
    found = {f"docs/{page}.md": f"{page}.md" for names in SECTIONS.values() for page in names}
    return {name: place for name, place in (found | {CHANGELOG: "project/changelog.md"}).items() if (root / name).exists()}


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page with their marks."""
    out: list[Block] = []
    fence, mark, before = "", None, ""
    for number, line in enumerate(text.split("\n"), 1):
        found = FENCE.match(line)
        if fence:
            if line.strip() == fence:
                fence = ""
            else:
                out[-1].lines.append(line)
        elif found:
            fence, mark = found[1], MARK.match(before)
            out.append(Block(number, found[2], mark[1] if mark else "", (mark[2] or "") if mark else ""))
        if line.strip() and not fence:
            before = line
    return out


def unmarked(text: str) -> list[str]:
    """Blocks that claim something and say nothing about it."""
    said = {
        "a block of code has no mark, see docs/guides.py": lambda b: b.language in MUST and not b.mark,
        "give a reason why this is not run": lambda b: b.mark == "not run" and not b.said,
        "a block without a language": lambda b: not b.language,
        "only sh and python can be run": lambda b: b.mark == "run" and b.language not in ("sh", "python"),
    }
    return [f"line {b.line}: {words}" for b in blocks(text) for words, wrong in said.items() if wrong(b)]


@cache
def report(root: Path, name: str) -> Any:
    """The numbers of a report: `categories` is reports/categories/metrics.json."""
    path = root / "reports" / (name if name.endswith(".json") else f"{name}/metrics.json")
    return json.loads(path.read_text(encoding="utf-8"))


def value_at(data: Any, place: str) -> Any:
    """What lies at `models/EmailTRM/group/accuracy`. In a list, `threshold=0.9` is the row that has this; `half` is half an interval."""
    for step in place.split("/"):
        if step == "half" and isinstance(data, dict):
            data = (data["high"] - data["low"]) / 2
        elif isinstance(data, list):
            key, equals, wanted = step.partition("=")
            data = next(row for row in data if str(row[key]) == wanted) if equals else data[int(step)]
        else:
            data = data[step]
    return data


def truth(root: Path, match: re.Match[str]) -> str:
    """The number as it should stand there. Raises `ValueError` if there is none."""
    try:
        value = value_at(report(root, match["file"]), match["place"])
        return str(value)[: int(match["form"][1:])] if match["form"].startswith("[") else format(value, match["form"]).replace("-", "−")
    except (OSError, LookupError, StopIteration, TypeError, ValueError) as error:
        raise ValueError(f"{match['file']} has nothing at {match['place']} ({type(error).__name__})") from None


def wrong_numbers(root: Path, text: str) -> list[str]:
    """Numbers that are not what the reports say."""
    out = []
    for match in NUMBER.finditer(text):
        try:
            right = truth(root, match)
        except ValueError as error:
            out.append(str(error))
            continue
        if match["shown"].replace(" ", "").replace("−", "-") != right.replace("−", "-"):
            out.append(f"says {match['shown']}, but {match['file']} has {right} at {match['place']}")
    return out


def corrected(root: Path, text: str) -> str:
    """The text with the numbers of the reports."""

    def put(match: re.Match[str]) -> str:
        right = truth(root, match)
        return (right.replace("%", " %") if " %" in match["shown"] else right) + match[0][len(match["shown"]):]

    return NUMBER.sub(put, text)


def shown(root: Path, text: str) -> str:
    """The page as readers see it: without marks, with drawings, and with a word where a block is not run. Raises `ValueError`."""
    out = []
    for line in text.split("\n"):
        mark = MARK.match(line)
        if mark and mark[1] == "not run":
            out.append(f'<p class="mark">Not run by the tests: {mark[2]}.</p>\n')
        elif mark and mark[1] == "file":
            out.append(f'<p class="mark">File <code>{mark[2]}</code></p>\n')
        elif mark and mark[1] == "drawing":
            out.append(drawing(root, mark[2]))
        elif not mark:
            out.append(NUMBER.sub(lambda m: m["shown"], line))
    return "\n".join(out)


def problems(root: Path, name: str) -> list[str]:
    """What is wrong with one page, links aside."""
    text = (root / name).read_text(encoding="utf-8")
    return unmarked(text) + wrong_numbers(root, text)


def main() -> int:
    """Check, or put right. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Check the pages under docs/ against the reports.")
    parser.add_argument("--write", action="store_true", help="put numbers right")
    write, found = parser.parse_args().write, 0
    for name in pages():
        path = ROOT / name
        if write:
            path.write_text(corrected(ROOT, path.read_text(encoding="utf-8")), encoding="utf-8")
        for problem in problems(ROOT, name):
            print(f"{name}: {problem}", file=sys.stderr)
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
