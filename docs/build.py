"""Build the docs without Quarto: nbs/ -> plain notebooks in _docs/src -> Sphinx -> _docs/html. Any warning fails the build.

Guides, concepts, the FAQ and the changelog are Markdown (docs/guides.py); a dead link, a number that is not the report's or a block of
code that nobody marked fails the build, too.

nbdev decides what a reader sees (directives, documentation of exported names); the normaliser below turns that into notebooks
that follow the nbformat schema, with links, pictures and headings that Sphinx understands. No notebook is executed: outputs are
the saved ones, and signatures come from the exported modules. The result works offline and from file://.

python docs/build.py [--out FOLDER]
"""
import argparse
import ast
import inspect
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import guides
import nbformat
import yaml
from fastcore.docments import DocmentText
from fastcore.nbio import read_nb
from nbdev.process import NBProcessor
from nbdev.processors import add_show_docs, filter_stream_, hide_line, populate_language, rm_header_dash, strip_ansi
from readme import CODE_SPAN, LINK, outside_fences, rewrite_links
from selectolax.lexbor import LexborHTMLParser

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {
    "core": "Errors with a cause and a remedy, logging, seeds, paths and run folders.",
    "mail": "One `Email` record, and turning bytes from anywhere into it, safely.",
    "data": "A dataset you can trust: validation, duplicates, splits, tokens and augmentation.",
    "hardware": "What this machine can do, and what it is suffering right now.",
    "trm": "The tiny recursive model, its halting, calibration and explanations.",
    "training": "Phases, checkpoints, recovery, search and ensembles.",
    "behaviour": "What the owner of a mailbox did with each mail, and the features that predict it.",
    "rl": "Six stages of post-training over any causal language model.",
    "evaluation": "Metrics, gates, plots, reports, robustness, reasoning and peers.",
    "serving": "The exported bundle, the classifier people import, and the HTTP service.",
    "widgets": "Widgets for JupyterLab.",
    "cli": "The command `email-trm`: it parses, calls and prints.",
}
EXTRA = {
    "pipelines": "Notebooks that papermill runs. They take parameters and leave a report.",
    "explore": "Notebooks for people: change a cell, see the effect.",
}
PAGES = {"CONTRIBUTING.md": "project/contributing.md", "data/README.md": "project/data.md", "reports/README.md": "project/reports.md",
    "configs/accelerate/README.md": "project/processes.md", "reports/reliability/README.md": "project/reliability.md",
    "reports/robustness/README.md": "project/robustness.md", "deploy/README.md": "project/deploy.md",
    "reports/learn/README.md": "project/learn.md", "reports/serving/README.md": "project/serving.md",
    "reports/augmentation/README.md": "project/augmentation.md",
    "reports/explanations/README.md": "project/explanations.md", "reports/reasoning/README.md": "project/reasoning.md",
    "reports/owner/README.md": "project/owner.md",
    "reports/actions/README.md": "project/actions.md", "reports/actions/STAGES.md": "project/stages.md",
    "email_trm/models/actions/README.md": "project/policy-card.md",
    "reports/benchmark/README.md": "project/benchmark.md", "reports/students/README.md": "project/students.md",
    **{f"reports/students/split-{i}/README.md": f"project/students-{i}.md" for i in range(3)},
    "email_trm/models/default/README.md": "project/model-card.md"}
ABOUT = ["project/data", "project/deploy", "project/processes", "project/contributing", "project/changelog"]  # Pages that are no reports
PICTURES = {".png", ".svg", ".jpg", ".jpeg", ".gif", ".webp"}
MIMES = ["text/html", "image/svg+xml", "image/png", "image/jpeg", "text/markdown", "text/latex", "text/plain"]
EXPORTS = {"export", "exports", "exporti"}
API_HEADING = re.compile(r"^### `[\w.]+`$")  # as api_markdown writes it
MODULE_PATH = re.compile(r"(?<=[:>\[ |])(?:[a-z_]\w*\.)+(?=[A-Z]\w*[\[\],:|= ]|[A-Z]\w*$)")  # email_trm.trm.config. in front of a class
CLASS_REPR = re.compile(r"<class '(?:\w+\.)*(\w+)'>")  # how Python shows a class that is no builtin
ARRAY = re.compile(r"numpy\.ndarray\[tuple\[(?:typing\.)?Any, \.\.\.\], numpy\.dtype\[numpy\.(\w+)\]\]")  # what NDArray[floating] becomes
CAPITALS = re.compile(r"^(?:[A-Z]\w*[a-z]\w*|\w+_\w+)(?:\.\w+)*$")


class DocsError(Exception):
    """Something in a page that would mislead or break it, with the place and what to do."""


@dataclass
class Site:
    """Where pages come from and go to, and what was found wrong on the way."""

    root: Path
    src: Path
    problems: list[str] = field(default_factory=list)
    symbols: dict[str, tuple[str, str]] = field(default_factory=dict)  # name in prose -> (page, label)
    modules: dict[Path, str] = field(default_factory=dict)  # notebook -> module it exports

    def problem(self, where: Path, what: str) -> None:
        """Note a problem; the build goes on and fails at the end."""
        self.problems.append(f"{where.relative_to(self.root)}: {what}")


# ---- what a page is called -------------------------------------------------------------------------------------------------
def page_of(notebook: Path) -> Path:
    """`core/00_errors.ipynb` -> `core/errors.ipynb`: the number is for the order, not for the address."""
    return notebook.with_name(re.sub(r"^\d+[a-z]?_", "", notebook.name))


def notebooks(nbs: Path) -> list[Path]:
    """Every notebook of the docs, in reading order: rooms from core to cli, then pipelines and explore."""
    order = ["index.ipynb", *ROOMS, *EXTRA]
    found = [p for p in sorted(nbs.rglob("*.ipynb")) if not any(part.startswith((".", "_")) for part in p.relative_to(nbs).parts)]
    known = [p for p in found if p.relative_to(nbs).parts[0] in order]
    return sorted(known, key=lambda p: (order.index(p.relative_to(nbs).parts[0]), p.as_posix()))


def default_export(nb: nbformat.NotebookNode) -> str:
    """The module a notebook exports, as `email_trm.core.errors`, or an empty string."""
    hits = [m for c in nb.cells if c.cell_type == "code" for m in [re.search(r"^#\|\s*default_exp\s+(\S+)", c.source, re.MULTILINE)] if m]
    return f"email_trm.{hits[0][1]}" if hits else ""


# ---- cells -----------------------------------------------------------------------------------------------------------------
def defined(source: str) -> list[str]:
    """Names of the functions and classes that a cell defines at its top level."""
    try:
        return [n.name for n in ast.parse(source).body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    except SyntaxError:
        return []


def only_imports(source: str) -> bool:
    """Is there nothing but imports in this cell?"""
    try:
        return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source).body)
    except SyntaxError:
        return False


def label_of(module: str, name: str) -> str:
    """The address of one documented name. Sphinx folds case, so `Split` and `split` need more than their letters."""
    return f"{'class' if name[:1].isupper() else 'def'}.{module}.{name}".lower()


def api_markdown(module: str, name: str) -> str:
    """Heading, signature and docstring of one exported name."""
    obj = import_module(module)
    for part in name.split("."):
        obj = inspect.getattr_static(obj, part) if "." in name and inspect.isclass(obj) else getattr(obj, part)
    obj = getattr(obj, "__func__", obj)
    if isinstance(obj, property):
        obj = obj.fget
    said = str(DocmentText(obj, docstring=False))  # annotations are not evaluated: some are only for type checkers
    lines = ARRAY.sub(r"NDArray[\1]", said).replace("scipy.sparse._csr.", "").split("\n")
    cut = (line.partition(" # ") for line in lines)
    short = [MODULE_PATH.sub("", CLASS_REPR.sub(r"\1", code)) + mark + note for code, mark, note in cut]
    signature = "\n".join(["```python", *short, "```"])
    if inspect.isclass(obj):
        signature = signature.replace("```python\ndef ", "```python\nclass ", 1).replace(")->None:\n```", "):\n```")
    doc = re.sub(r"^(?=#)", r"\\", inspect.getdoc(obj) or "", flags=re.MULTILINE)
    return f"({label_of(module, name)})=\n### `{name}`\n\n{signature}\n\n{doc}".rstrip()


def visible_cells(nb: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """What nbdev would show, with each exported source folded under its documentation instead of left out."""
    steps = [populate_language, add_show_docs, strip_ansi, hide_line, filter_stream_, rm_header_dash]
    processor = NBProcessor(nb=nb, procs=steps, rm_directives=True)
    processor.process()
    kept: list[nbformat.NotebookNode] = []
    folded: list[nbformat.NotebookNode] = []  # sources that wait until their documentation has been shown
    for cell in processor.nb.cells:
        directives = getattr(cell, "directives_", None) or {}
        if cell.cell_type == "code" and ({"hide", "default_exp"} & directives.keys() or directives.get("include") == "false"):
            continue
        if cell.cell_type == "code" and EXPORTS & directives.keys():
            if only_imports(cell.source) or "exporti" in directives:
                continue
            if defined(cell.source):
                cell.metadata["tags"] = ["hide-input"]
                kept, folded = kept + folded, [cell]
                continue
        if folded and not getattr(cell, "has_sd", False):
            kept += folded
            folded = []
        if directives.get("echo") == "false":
            cell.metadata["tags"] = ["remove-input"]
        if directives.get("output") == "false":
            cell.outputs = []
        kept.append(cell)
    return [c for c in kept + folded if str(c.get("source") or "").strip()]


def clean_outputs(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Saved outputs in the nbformat schema, each with the forms a page can show. An error output is not shown: it raises."""
    kept = []
    for out in outputs:
        if out["output_type"] == "error":
            raise DocsError(f"a saved output is an error ({out.get('ename')}). What to do: run the notebook again and save it")
        if out["output_type"] == "stream":
            kept.append(nbformat.v4.new_output("stream", name=out["name"], text="".join(out["text"])))
            continue
        data = {mime: "".join(v) if isinstance(v := out["data"][mime], list) else v for mime in MIMES if mime in out["data"]}
        if data:
            kept.append(nbformat.v4.new_output("display_data", data=data))
    return kept


# ---- markdown --------------------------------------------------------------------------------------------------------------
def level_headings(texts: list[str]) -> list[str]:
    """Make one H1, at the top, and no jump of more than one level below it. A documented name goes one below its section."""
    last = section = 0

    def line(text: str) -> str:
        nonlocal last, section
        match = re.match(r"^(#{1,6})\s+(?=\S)", text)
        if not match:
            return text
        if API_HEADING.match(text):
            level = last = section + 1
        else:
            level = last = section = max(2, min(len(match[1]), last + 1)) if last else 1
        return "#" * level + " " + text[match.end() :]

    return [outside_fences(text, line) for text in texts]


def link_symbols(site: Site, text: str, page: Path) -> str:
    """Turn `Name` in prose into a link to where that name is documented, unless it is documented on this very page."""

    def span(match: re.Match[str]) -> str:
        name = match[0].strip("`").removesuffix("()")
        hit = site.symbols.get(name)
        return f"[{match[0]}](#{hit[1]})" if hit and hit[0] != page.as_posix() and CAPITALS.match(name) else match[0]

    def line(text: str) -> str:
        if text.startswith(("#", "    ", "(")) or LINK.search(text):
            return text
        return CODE_SPAN.sub(span, text)

    return outside_fences(text, line)


def places(root: Path) -> dict[str, str]:
    """Every page that is no notebook, and its place in the site."""
    return PAGES | guides.pages(root)


def place_link(site: Site, target: str, source: Path, page: Path) -> str:
    """Where a relative link of `source` leads in the built pages. Pictures are copied beside them."""
    path = Path(os.path.normpath(source.parent / unquote(target)))
    nbs = site.root / "nbs"
    here = (site.src / page).parent
    if not path.exists() or not path.is_relative_to(site.root):
        site.problem(source, f"links to {target}, which is not in the repository")
        return target
    rel = path.relative_to(site.root).as_posix()
    if path.suffix == ".ipynb" and path in notebooks(nbs):
        place = site.src / page_of(path.relative_to(nbs))
    elif rel in places(site.root):
        place = site.src / places(site.root)[rel]
    elif path.is_dir() and path.parent == nbs and path.name in ROOMS | EXTRA:
        place = site.src / path.name / "index.md"
    elif rel == "README.md":
        place = site.src / "index.ipynb"
    else:
        place = site.src / "files" / rel
        if path.is_dir():
            site.problem(source, f"links to the folder {target}, which has no page; write its name as code instead")
            return target
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return Path(os.path.relpath(place, here)).as_posix()


def front_matter(source: str) -> str:
    """A raw front matter cell as a title and one line; anything else as it is."""
    match = re.match(r"^---\s*\n(.*?)\n---\s*$", source.strip(), re.DOTALL)
    data = yaml.safe_load(match[1]) if match else {}
    return f"# {data['title']}\n\n" + (f"> {data['description']}" if data.get("description") else "") if data.get("title") else ""


def show_doc_name(source: str) -> str:
    """The name in a cell that only calls `show_doc(name)`, else an empty string."""
    match = re.fullmatch(r"show_doc\(\s*([\w.]+).*\)", source.strip(), re.DOTALL)
    return match[1] if match else ""


# ---- pages -----------------------------------------------------------------------------------------------------------------
def normalise(site: Site, notebook: Path) -> nbformat.NotebookNode:
    """One notebook as a page: valid by the nbformat schema, documented names rendered, links and headings put right."""
    page = page_of(notebook.relative_to(site.root / "nbs"))
    module = site.modules.get(notebook, "")
    cells = []
    for number, cell in enumerate(visible_cells(read_nb(notebook))):
        source, cell_id = cell.source.strip("\n"), f"c{number}"
        name = show_doc_name(source) if cell.cell_type == "code" else ""
        if name:
            try:
                source = api_markdown(module, name)
            except (ImportError, AttributeError) as error:
                site.problem(notebook, f"cannot document {name}: {error}. What to do: make export; make install if a library is missing")
                continue
        if cell.cell_type == "raw":
            source = front_matter(source)
        if cell.cell_type == "code" and not name:
            new = nbformat.v4.new_code_cell(source, id=cell_id, metadata={"tags": list(cell.metadata.get("tags", []))})
            try:
                new.outputs = clean_outputs(cell.get("outputs", []))
            except DocsError as error:
                site.problem(notebook, str(error))
            cells.append(new)
        elif source:
            cells.append(nbformat.v4.new_markdown_cell(source, id=cell_id))
    words = [c for c in cells if c.cell_type == "markdown"]
    texts = level_headings([rewrite_links(c.source, lambda t: place_link(site, t, notebook, page)) for c in words])
    if not texts or not texts[0].startswith("# "):
        site.problem(notebook, "does not start with a markdown cell '# Title'")
    for cell, text in zip(words, texts, strict=True):
        cell.source = link_symbols(site, text, page)
    language = {"name": "python", "pygments_lexer": "ipython3"}
    nb = nbformat.v4.new_notebook(cells=cells, metadata={"language_info": language})
    nbformat.validate(nb)
    return nb


def title_and_line(nb: nbformat.NotebookNode) -> tuple[str, str]:
    """Title and one-line purpose of a page."""
    text = next((c.source for c in nb.cells if c.cell_type == "markdown"), "")
    title, line = re.search(r"^# (.+)$", text, re.MULTILINE), re.search(r"^> (.+)$", text, re.MULTILINE)
    return (title[1].strip() if title else "Untitled"), (line[1].strip() if line else "")


def room_page(name: str, sentence: str, pages: list[tuple[str, str, str]]) -> str:
    """The page of one room: its sentence, and a table of (page, title, line)."""
    rows = "\n".join(f"| [{title}]({page}) | {line.replace('|', chr(92) + '|')} |" for page, title, line in pages)
    tree = "\n".join(page for page, _, _ in pages)
    return f"# {name}\n\n> {sentence}\n\n| page | what it is for |\n|---|---|\n{rows}\n\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n"


def toctree(caption: str, entries: list[str]) -> str:
    """A hidden table of contents for the side bar."""
    return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(entries) + "\n```"


def read_symbols(site: Site, found: list[Path]) -> None:
    """Learn which notebook exports which module, and on which page each public name is documented."""
    for notebook in found:
        nb = read_nb(notebook)
        module = default_export(nb)
        if not module:
            continue
        site.modules[notebook] = module
        page = page_of(notebook.relative_to(site.root / "nbs")).as_posix()
        for cell in nb.cells:
            if cell.cell_type == "code" and re.search(r"^#\|\s*exports?\s*$", cell.source, re.MULTILINE):
                for name in defined(cell.source):
                    if not name.startswith("_") and "@patch" not in cell.source:
                        site.symbols[name] = (page, label_of(module, name))


def project_order(place: str) -> tuple[bool, int]:
    """Reports first, then the pages about working on the project."""
    names = [page.removesuffix(".md") for page in PAGES.values()]
    about = place in ABOUT
    return about, ABOUT.index(place) if about else names.index(place)


def written_page(site: Site, name: str, place: str) -> str:
    """A Markdown file as a page: links and headings put right. Guides are also checked, and lose their marks."""
    text = (site.root / name).read_text(encoding="utf-8")
    if name in guides.pages(site.root):
        for problem in guides.problems(site.root, name):
            site.problem(site.root / name, problem)
        text = guides.shown(site.root, text)
    text = rewrite_links(text, lambda t: place_link(site, t, site.root / name, Path(place)))
    text = level_headings([text])[0]
    return link_symbols(site, text, Path(place)) if name.startswith("docs/") else text


def write_sources(site: Site) -> int:
    """Write every page into the source folder. Returns how many there are."""
    shutil.rmtree(site.src, ignore_errors=True)
    nbs = site.root / "nbs"
    found = notebooks(nbs)
    read_symbols(site, found)
    rooms: dict[str, list[tuple[str, str, str]]] = {}
    index = None
    for notebook in found:
        rel = notebook.relative_to(nbs)
        nb = normalise(site, notebook)
        if rel.as_posix() == "index.ipynb":
            index = nb
            continue
        page = page_of(rel)
        (site.src / page).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, site.src / page)
        rooms.setdefault(rel.parts[0], []).append((page.relative_to(rel.parts[0]).as_posix(), *title_and_line(nb)))
    for room, pages in rooms.items():
        (site.src / room / "index.md").write_text(room_page(room, (ROOMS | EXTRA)[room], pages), encoding="utf-8")
    for name, place in places(site.root).items():
        if (site.root / name).exists():
            (site.src / place).parent.mkdir(parents=True, exist_ok=True)
            (site.src / place).write_text(written_page(site, name, place), encoding="utf-8")
    if index is None:
        index = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# EmailTRM")])
        site.problems.append("nbs/index.ipynb: missing")
    there = {place.removesuffix(".md"): name for name, place in places(site.root).items() if (site.root / name).exists()}
    trees = [toctree(caption, chosen) for caption, names in guides.SECTIONS.items() if (chosen := [n for n in names if n in there])]
    trees += [
        toctree("Reference", [f"{room}/index" for room in (*ROOMS, *EXTRA) if room in rooms]),
        toctree("Reports and project", sorted((place for place in there if place.startswith("project/")), key=project_order)),
    ]
    index.cells += [nbformat.v4.new_markdown_cell(tree, id=f"toc{n}") for n, tree in enumerate(trees) if tree]
    nbformat.write(index, site.src / "index.ipynb")
    return len(list(site.src.rglob("*.ipynb"))) + len(list(site.src.rglob("*.md")))


# ---- checks on the result --------------------------------------------------------------------------------------------------
@dataclass
class Page:
    """What a page links to, what it loads and which ids it has."""

    links: list[str]
    loads: list[str]
    ids: set[str]


def read_page(path: Path) -> Page:
    """Read one built page."""
    tree = LexborHTMLParser(path.read_text(encoding="utf-8"))

    def values(selector: str, key: str) -> list[str]:
        return [node.attributes[key] or "" for node in tree.css(selector)]

    refers = "link[href]:not([rel=canonical]):not([rel=author]):not([rel=license])"
    loads = values(refers, "href") + [src for src in values("[src]:not(a)", "src") if src]
    return Page(values("a[href]", "href"), loads, {*values("[id]", "id"), *values("[name]", "name")})


def check_site(html: Path) -> Iterator[str]:
    """Problems in built pages: broken internal links, missing files, anything fetched from the network."""
    found = sorted(p for p in html.rglob("*.html") if "_static" not in p.relative_to(html).parts)
    pages = {path.resolve(): read_page(path) for path in found}
    for path, page in pages.items():
        where = path.relative_to(html.resolve())
        for load in page.loads:
            if re.match(r"(https?:)?//", load):
                yield f"{where}: loads {load} from the network"
            elif not load.startswith("data:") and not (path.parent / unquote(load.split("?")[0].split("#")[0])).exists():
                yield f"{where}: loads {load}, which is missing"
        for link in page.links:
            if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//", link):
                continue
            file, _, fragment = link.partition("#")
            target = (path.parent / unquote(file)).resolve() if file else path
            if not target.exists():
                yield f"{where}: links to {link}, which is missing"
            elif fragment and target in pages and unquote(fragment) not in pages[target].ids:
                yield f"{where}: links to {link}, and there is no such place on that page"
    for sheet in sorted(html.rglob("*.css")):
        if re.search(r"(@import\s+|url\()\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8", errors="replace")):
            yield f"{sheet.relative_to(html)}: loads something from the network"


def sphinx(src: Path, html: Path, doctrees: Path) -> int:
    """Run Sphinx with warnings as errors. Returns its exit code."""
    from sphinx.cmd.build import main as sphinx_build

    shutil.rmtree(html, ignore_errors=True)
    options = ["-W", "--keep-going", "-q", "-E", "-b", "html", "-d", str(doctrees), "-c", str(ROOT / "docs")]
    return sphinx_build([*options, str(src), str(html)])


def main() -> int:
    """Build, check, report. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Build the docs from the notebooks; any warning fails.")
    parser.add_argument("--out", type=Path, default=ROOT / "_docs", help="where to build (default: _docs)")
    args = parser.parse_args()
    started, out = time.monotonic(), args.out.resolve()
    sys.path.insert(0, str(ROOT))
    site = Site(ROOT, out / "src")
    count = write_sources(site)
    code = sphinx(site.src, out / "html", out / "doctrees")
    problems = site.problems + list(check_site(out / "html"))
    for problem in problems:
        print(f"docs: {problem}", file=sys.stderr)
    if code or problems:
        print(f"docs: FAILED, {len(problems)} problems{', and the warnings of Sphinx above' if code else ''}", file=sys.stderr)
        return 1
    print(f"docs: {count} pages, 0 warnings, {time.monotonic() - started:.0f} s: {os.path.relpath(out / 'html' / 'index.html')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
