"""Write README.md from nbs/index.ipynb, so that the landing page is written once.

python docs/readme.py          writes README.md
python docs/readme.py --check  exits 1 if README.md is not what nbs/index.ipynb says
"""
import argparse
import posixpath
import re
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
HEADER = "<!-- Written from nbs/index.ipynb by docs/readme.py. Edit the notebook, then run: make export -->\n\n"

FENCE = re.compile(r"^ {0,3}(```|~~~)")
CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)")
LINK = re.compile(r"""(?P<before>\]\(\s*|\b(?:src|href|srcset)=["'])(?P<target>[^\s()"'<>]+)""")
LOCAL = re.compile(r"^(?![a-zA-Z][a-zA-Z0-9+.-]*:|//|#|/)")
SILENT = re.compile(r"^#\|\s*echo:\s*false\b", re.MULTILINE)
HIDDEN = re.compile(r"^#\|\s*(hide|export|exporti|default_exp)\b", re.MULTILINE)


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """Apply `change` to the lines of a markdown text that are not inside a code fence."""
    out, fence = [], ""
    for line in text.split("\n"):
        mark = FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1] == fence:
            fence = ""
        elif not fence:
            line = change(line)
        out.append(line)
    return "\n".join(out)


def rewrite_links(text: str, change: Callable[[str], str]) -> str:
    """Apply `change` to the path of every relative link and picture in a markdown text; code and `#fragment` stay as they are."""

    def one(match: re.Match[str]) -> str:
        path, mark, fragment = match["target"].partition("#")
        return match["before"] + (change(path) + mark + fragment if LOCAL.match(path) and path else match["target"])

    def line(text: str) -> str:
        spans = [(m.start(), m.end()) for m in CODE_SPAN.finditer(text)]
        inside = lambda m: any(start <= m.start() and m.end() <= end for start, end in spans)
        return LINK.sub(lambda m: m[0] if inside(m) else one(m), text)

    return outside_fences(text, line)


def from_root(path: str, base: str = "nbs") -> str:
    """A path written relative to folder `base`, as seen from the root of the repository. A closing slash stays."""
    return posixpath.normpath(posixpath.join(base, path)) + ("/" if path.endswith("/") else "")


def output_only(cell: NotebookNode) -> NotebookNode:
    """A code cell marked `#| echo: false` as the markdown it put out; any other cell as it is."""
    if cell.cell_type != "code" or not SILENT.search(cell.source):
        return cell
    texts = [out.data["text/markdown"] for out in cell.outputs if "text/markdown" in out.get("data", {})]
    return nbformat.v4.new_markdown_cell("\n\n".join(texts))


def render(notebook: Path) -> str:
    """The README's text for an index notebook. Code and its text output are kept; hidden and exported cells are not."""
    nb = nbformat.read(notebook, as_version=4)
    nb.cells = [output_only(c) for c in nb.cells if not (c.cell_type == "code" and HIDDEN.search(c.source)) and c.cell_type != "raw"]
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = rewrite_links(cell.source, from_root)
    text, resources = MarkdownExporter().from_notebook_node(nb)
    if resources.get("outputs"):
        raise SystemExit(f"{notebook} has picture outputs; a README cannot hold them.\n  What to do: link a file, ![](../reports/x.png)")
    text = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return HEADER + re.sub(r"\n{3,}", "\n\n", text) + "\n"


def main() -> int:
    """Write or check README.md."""
    parser = argparse.ArgumentParser(description="Write README.md from nbs/index.ipynb.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if README.md is out of step")
    parser.add_argument("--notebook", type=Path, default=ROOT / "nbs" / "index.ipynb", help="the notebook to read")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the file to write")
    args = parser.parse_args()
    if not args.notebook.exists():
        print(f"{args.notebook} is missing.\n  What to do: restore it with git checkout", file=sys.stderr)
        return 1
    text = render(args.notebook)
    if args.readme.exists() and args.readme.read_text(encoding="utf-8") == text:
        return 0
    if args.check:
        print(f"{args.readme.name} is not what {args.notebook.name} says.\n  What to do: make export", file=sys.stderr)
        return 1
    draft = args.readme.with_suffix(".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(args.readme)
    print(f"wrote {args.readme.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
