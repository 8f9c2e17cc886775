"""The rules of the house, checked on the repository, and each shown to fail on something made up.

A rule is a function from paths to a list of complaints. CONTRIBUTING.md says the same rules in words.
"""
import ast
import configparser
import io
import json
import os
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ["core", "mail", "data", "hardware", "trm", "training", "behaviour", "rl", "evaluation", "serving", "widgets", "cli"]
LONGEST = 60  # lines of an exported cell
RESERVED = re.compile(r"(^|\.)(example|test|invalid|localhost|example\.(org|com|net))$", re.IGNORECASE)
ADDRESS = re.compile(r"[A-Za-z0-9._%+-]+@([A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,})\b")
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"read_pickle", "to_pickle"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


# ---- helpers ---------------------------------------------------------------------------------------------------------------
def notebooks(nbs: Path) -> list[Path]:
    """All notebooks, checkpoints left out."""
    return [p for p in sorted(nbs.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]


def cells(path: Path) -> list[dict]:
    """The cells of a notebook, each source as one string."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [c | {"source": "".join(c["source"])} for c in found]


def modules(package: Path) -> list[Path]:
    """The modules of a package that people wrote, in a notebook or by hand."""
    return [p for p in sorted(package.rglob("*.py")) if p.name != "_modidx.py" and "__pycache__" not in p.parts]


def is_exported(source: str) -> bool:
    """Does this cell go into a module?"""
    return bool(re.search(r"^#\|\s*export[si]?\b", source, re.MULTILINE))


# ---- rules -----------------------------------------------------------------------------------------------------------------
def module_ranks(nbs: Path) -> dict[str, tuple[int, int]]:
    """`room.name` -> (place of the room, number of the notebook); the order in which imports may go."""
    ranks = {}
    for path in notebooks(nbs):
        room, number = path.relative_to(nbs).parts[0], re.match(r"(\d+)", path.name)
        for cell in cells(path) if room in ROOMS and number else []:
            if cell["cell_type"] == "code" and (hit := re.search(r"^#\|\s*default_exp\s+(\S+)", cell["source"], re.MULTILINE)):
                ranks[hit[1]] = (ROOMS.index(room), int(number[1]))
    return ranks


def imported_names(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """(line, `room.name`) for each import of this package, absolute or relative, at the top of a module or inside a function."""
    base = path.relative_to(package.parent).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(base[: len(base) - node.level]) if node.level else ""
            stem = ".".join(part for part in (start, node.module) if part)
            names = [f"{stem}.{alias.name}" for alias in node.names] if stem.count(".") < 2 else [stem]
        else:
            continue
        for name in names:
            if name.split(".")[0] == package.name:
                yield node.lineno, ".".join(name.split(".")[1:3])


def upward_imports(package: Path, nbs: Path) -> list[str]:
    """Imports that do not go down: from a room below, or from a higher number in the same room."""
    ranks, found = module_ranks(nbs), []
    for path in modules(package):
        if path.name == "__init__.py":
            continue
        own = ".".join(path.relative_to(package).with_suffix("").parts)
        for line, name in imported_names(path, package):
            where = f"{path.relative_to(package.parent)}:{line}"
            if name == "__version__":
                continue
            if name not in ranks or own not in ranks:
                found.append(f"{where}: imports {name or 'the package itself'}; import from the module that owns the name")
            elif ranks[name] >= ranks[own]:
                found.append(f"{where}: imports {name}, which does not stand above {own}")
    return found


def long_cells(nbs: Path, limit: int = LONGEST) -> list[str]:
    """Exported cells that do not fit on a page."""
    found = [(p, n, len(c["source"].splitlines())) for p in notebooks(nbs) for n, c in enumerate(cells(p)) if is_exported(c["source"])]
    return [f"{p.relative_to(nbs)}, cell {n}: {length} lines; open it with @patch or split it" for p, n, length in found if length > limit]


def mixed_cells(nbs: Path) -> list[str]:
    """Exported cells that hold imports beside other code."""
    found = []
    for path in notebooks(nbs):
        for number, cell in enumerate(cells(path)):
            if cell["cell_type"] == "code" and is_exported(cell["source"]):
                kinds = {isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(cell["source"]).body}
                if len(kinds) == 2 and "TYPE_CHECKING" not in cell["source"]:
                    found.append(f"{path.relative_to(nbs)}, cell {number}: imports and other code; give imports a cell of their own")
    return found


def comment_lines(source: str) -> tuple[set[int], set[int]]:
    """(lines that end in a comment, lines that are only a comment)."""
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
    return {t.start[0] for t in tokens}, {t.start[0] for t in tokens if t.line.lstrip().startswith("#")}


def undocumented_parameters(node: Function, source: str) -> list[str]:
    """Parameters without a docment: a comment on the parameter's line or above it, or `help=` inside its annotation (typer)."""
    ends, alone = comment_lines(source)
    spec = node.args
    arguments = [a for a in [*spec.posonlyargs, *spec.args, spec.vararg, *spec.kwonlyargs, spec.kwarg] if a]
    if arguments and any(isinstance(d, ast.Name | ast.Call) and "patch" in ast.unparse(d) for d in node.decorator_list):
        arguments = arguments[1:]
    shared = [line for line in {a.lineno for a in arguments} if sum(a.lineno == line for a in arguments) > 1]
    missing = []
    for a in arguments:
        note = a.annotation and ast.unparse(a.annotation)
        helped = bool(note and re.search(r"\bhelp=|\b(Option|Argument)\(|^Annotated\[.*['\"]", note))
        last = a.annotation.end_lineno if a.annotation else a.lineno
        commented = {a.lineno, last} & ends or (a.lineno - 1) in alone
        if not helped and (not commented or a.lineno in shared):
            missing.append(a.arg)
    return missing


def undocumented(package: Path) -> list[str]:
    """Public functions, classes and methods without a docstring; functions and patched methods with parameters that nothing describes."""
    found = []
    for path in modules(package):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        for prefix, node in [*(("", node) for node in tree.body), *((f"{c.name}.", node) for c in classes for node in c.body)]:
            if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
                continue
            where = f"{path.relative_to(package.parent)}:{node.lineno} {prefix}{node.name}"
            if not ast.get_docstring(node):
                found.append(f"{where}: no docstring")
            if not prefix and isinstance(node, Function) and (missing := undocumented_parameters(node, source)):
                found.append(f"{where}: no comment on {', '.join(missing)} (one parameter on a line)")
    return found


def unsafe_loading(package: Path) -> list[str]:
    """Ways of reading a file that can run code from it."""
    found = []
    for path in modules(package):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            what = ""
            if isinstance(node, ast.Import):
                what = next((a.name for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES), "")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
                what = node.module or ""
            elif isinstance(node, ast.Call):
                name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
                if name.split(".")[-1] in UNSAFE_CALLS or given.get("allow_pickle") == "True" or given.get("weights_only") == "False":
                    what = ast.unparse(node)
                elif name == "torch.load" and given.get("weights_only") != "True":
                    what = "torch.load without weights_only=True"
            if what:
                found.append(f"{path.relative_to(package.parent)}:{node.lineno}: {what}; use safetensors or JSON")
    return found


def real_addresses(text: str) -> list[str]:
    """Domains of addresses in a text that are not reserved for examples (RFC 2606)."""
    return sorted({domain for domain in ADDRESS.findall(text) if not RESERVED.search(domain)})


def leaking_outputs(paths: list[Path]) -> list[str]:
    """Outputs of notebooks that hold addresses of real domains."""
    found = []
    for path in paths:
        for number, cell in enumerate(cells(path)):
            for out in cell.get("outputs", []):
                data = {k: v for k, v in out.get("data", {}).items() if not k.startswith("image/") or k == "image/svg+xml"}
                strings = [out.get("text", ""), *data.values()]
                if domains := real_addresses("\n".join("".join(s) if isinstance(s, list) else str(s) for s in strings)):
                    found.append(f"{path.name}, cell {number}: an output names an address at {', '.join(domains)}")
    return found


def leaking_files(folder: Path) -> list[str]:
    """Committed text files that hold addresses of real domains."""
    kinds = {".html", ".json", ".ipynb", ".md", ".csv", ".txt"}
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in kinds and p.name != "tokenizer.json"]
    found = [(p, real_addresses(p.read_text(encoding="utf-8", errors="replace"))) for p in files]
    return [f"{p.relative_to(folder)}: an address at {', '.join(domains)}" for p, domains in found if domains]


def error_outputs(nbs: Path) -> list[str]:
    """Saved outputs that are errors."""
    return [f"{p.relative_to(nbs)}, cell {n}: a saved error" for p in notebooks(nbs) for n, c in enumerate(cells(p))
        for out in c.get("outputs", []) if out["output_type"] == "error"]


def wrong_templates(pipelines: Path) -> list[str]:
    """Papermill templates that have not exactly one cell tagged `parameters`: papermill would run their defaults in silence."""
    counts = {p: sum("parameters" in c["metadata"].get("tags", []) for c in cells(p)) for p in notebooks(pipelines)}
    return [f"{p.name}: {count} cells are tagged 'parameters', and there must be one" for p, count in counts.items() if count != 1]


def version_mismatch(settings: Path, package: Path) -> list[str]:
    """The version is written in two places; they must agree."""
    config = configparser.ConfigParser(delimiters=["="])
    config.read(settings, encoding="utf-8")
    hit = re.search(r'^__version__\s*=\s*"(.+?)"', (package / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    have, want = (hit[1] if hit else None), config["DEFAULT"]["version"]
    return [] if have == want else [f"settings.ini says {want}, {package.name}.__version__ says {have}"]


def unlisted_modules(nbs: Path) -> list[str]:
    """Module notebooks that the landing page does not link to."""
    text = "".join(c["source"] for c in cells(nbs / "index.ipynb"))
    names = [p.relative_to(nbs).as_posix() for p in notebooks(nbs) if p.relative_to(nbs).parts[0] in ROOMS]
    return [f"{name}: not linked in nbs/index.ipynb" for name in names if f"({name})" not in text]


# ---- on the repository -----------------------------------------------------------------------------------------------------
PACKAGE, NBS = ROOT / "email_trm", ROOT / "nbs"
KEPT = [ROOT / hit for hit in re.findall(r"^!/(reports/\w+)/$", (ROOT / ".gitignore").read_text(encoding="utf-8"), re.MULTILINE)]
RULES = {
    "imports go down": lambda: upward_imports(PACKAGE, NBS),
    "exported cells fit on a page": lambda: long_cells(NBS),
    "imports have cells of their own": lambda: mixed_cells(NBS),
    "public names are documented": lambda: undocumented(PACKAGE),
    "nothing is unpickled": lambda: unsafe_loading(PACKAGE),
    "outputs hold no real address": lambda: leaking_outputs(notebooks(NBS)),
    "committed reports hold no real address": lambda: [line for folder in KEPT for line in leaking_files(folder)],
    "no saved errors": lambda: error_outputs(NBS),
    "templates take parameters": lambda: wrong_templates(NBS / "pipelines"),
    "one version": lambda: version_mismatch(ROOT / "settings.ini", PACKAGE),
    "landing page lists every module": lambda: unlisted_modules(NBS),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    """The repository keeps the rule."""
    if complaints := RULES[rule]():
        pytest.fail(f"{rule}: {len(complaints)} complaints\n  " + "\n  ".join(complaints), pytrace=False)


def test_rules_see_the_repository() -> None:
    """A rule that looks at nothing would always pass."""
    assert len(modules(PACKAGE)) > 5 and len(module_ranks(NBS)) > 5 and notebooks(NBS / "pipelines")


# ---- each rule can fail ----------------------------------------------------------------------------------------------------
def notebook(path: Path, *code: str, tags: tuple[str, ...] = (), outputs: tuple[dict, ...] = ()) -> Path:
    """A made-up notebook with these code cells; tags and outputs go to the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    empty = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    made = [empty | {"id": f"c{n}", "source": source} for n, source in enumerate(code)]
    made[0]["metadata"], made[0]["outputs"] = {"tags": list(tags)}, list(outputs)
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return path


def module(path: Path, source: str) -> Path:
    """A made-up module."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    return path


@pytest.mark.parametrize(("source", "complaints"), [
    ("from pkg.core.errors import x", 0),
    ("from ..core.errors import x", 0),
    ("from pkg import __version__", 0),
    ("from pkg.trm.model import x", 1),  # a room below
    ("from ..trm import model", 1),
    ("def f():\n    import pkg.trm.model", 1),  # hidden in a function
    ("from pkg.mail.later import x", 1),  # a higher number in the same room
    ("from .later import x", 1),
    ("from pkg.mail.text import x", 1),  # itself
    ("from pkg import Email", 1),  # by the front door
])
def test_import_rule(tmp_path: Path, source: str, complaints: int) -> None:
    """Imports that go up are seen in every form they can take."""
    places = {"core/00_errors": "core.errors", "mail/01_text": "mail.text", "mail/02_later": "mail.later", "trm/00_model": "trm.model"}
    for place, name in places.items():
        notebook(tmp_path / "nbs" / f"{place}.ipynb", f"#| default_exp {name}")
    module(tmp_path / "pkg" / "mail" / "text.py", source)
    assert len(upward_imports(tmp_path / "pkg", tmp_path / "nbs")) == complaints


def test_cell_rules(tmp_path: Path) -> None:
    """Long exported cells and mixed exported cells are found; long or mixed cells that are not exported are not."""
    body = "\n".join(f"x{n} = {n}" for n in range(LONGEST + 1))
    notebook(tmp_path / "a.ipynb", "#| export\n" + body, body, "#| export\nimport os\nx = 1", "import os\nx = 1", "#| export\nimport os")
    assert len(long_cells(tmp_path)) == 1 and len(mixed_cells(tmp_path)) == 1


@pytest.mark.parametrize(("source", "complaints"), [
    ('def f(\n    x: int, # a number\n) -> int: # it\n    """Doc."""\n    return x', 0),
    ('def f(\n    # a number\n    x: int,\n) -> int:\n    """Doc."""', 0),
    ('def f(x: int) -> int: # it\n    """Doc."""', 0),  # one parameter, one comment, one line: fastcore takes it
    ('def f(x: int, y: int): # both\n    """Doc."""', 1),  # one comment cannot describe two parameters
    ('def f(x: int):\n    """Doc."""', 1),
    ("def f():\n    return 1", 1),
    ("def _f(x):\n    return 1", 0),
    ('def f(x: Annotated[str, typer.Option(help="A file.")]):\n    """Doc."""', 0),
    ("class A:\n    x = 1", 1),
    ('class A:\n    """Doc."""\n    def __init__(self, x: int): pass', 0),
    ('class A:\n    """Doc."""\n    def f(self): return 1', 1),
    ('class A:\n    """Doc."""\n    def f(self):\n        """Doc."""', 0),
    ('@patch\ndef f(self: A, x: int):\n    """Doc."""', 1),
    ('@patch\ndef f(self: A):\n    """Doc."""', 0),
])
def test_documentation_rule(tmp_path: Path, source: str, complaints: int) -> None:
    """Missing docstrings and docments are found."""
    module(tmp_path / "pkg" / "a.py", source)
    assert len(undocumented(tmp_path / "pkg")) == complaints


@pytest.mark.parametrize(("source", "complaints"), [
    ("import json", 0),
    ("import pickle", 1),
    ("from joblib import load", 1),
    ("def f():\n    import dill", 1),
    ("torch.load(p)", 1),
    ("torch.load(p, weights_only=False)", 1),
    ("torch.load(p, weights_only=True)", 0),
    ("pd.read_pickle(p)", 1),
    ("np.load(p, allow_pickle=True)", 1),
])
def test_loading_rule(tmp_path: Path, source: str, complaints: int) -> None:
    """Every unsafe way of loading is found."""
    module(tmp_path / "pkg" / "a.py", source)
    assert len(unsafe_loading(tmp_path / "pkg")) == complaints


@pytest.mark.parametrize(("text", "domains"), [
    ("ada@example.org, b@mail.example.com, c@shop.example, <d@x.test>", []),
    ("x @decorator.call and @media screen", []),
    ("write to jane@enron-like.com now", ["enron-like.com"]),
    ("jane@notexample.org", ["notexample.org"]),
])
def test_address_rule(tmp_path: Path, text: str, domains: list[str]) -> None:
    """Addresses outside the reserved domains are found in outputs and in committed files."""
    assert real_addresses(text) == domains
    stream = {"output_type": "stream", "name": "stdout", "text": [text]}
    table = {"output_type": "display_data", "metadata": {}, "data": {"text/html": text, "image/png": "a@b.co"}}
    assert len(leaking_outputs([notebook(tmp_path / "a.ipynb", "1", outputs=(stream, table))])) == 2 * bool(domains)
    module(tmp_path / "run" / "report.html", text)
    assert len(leaking_files(tmp_path / "run")) == bool(domains)


def test_small_rules(tmp_path: Path) -> None:
    """Errors, templates, versions and the landing page."""
    error = {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}
    notebook(tmp_path / "nbs" / "core" / "00_bad.ipynb", "1/0", outputs=(error,))
    assert len(error_outputs(tmp_path / "nbs")) == 1
    notebook(tmp_path / "p" / "good.ipynb", "x = 1", "y = 2", tags=("parameters",))
    assert wrong_templates(tmp_path / "p") == []
    notebook(tmp_path / "p" / "bad.ipynb", "x = 1")
    assert len(wrong_templates(tmp_path / "p")) == 1
    module(tmp_path / "settings.ini", "[DEFAULT]\nversion = 0.2.0\n")
    module(tmp_path / "pkg" / "__init__.py", '__version__ = "0.1.0"\n')
    assert len(version_mismatch(tmp_path / "settings.ini", tmp_path / "pkg")) == 1
    notebook(tmp_path / "nbs" / "index.ipynb", "no links")
    assert unlisted_modules(tmp_path / "nbs") == ["core/00_bad.ipynb: not linked in nbs/index.ipynb"]


@pytest.mark.xdist_group("grouped")
def test_groups_reach_the_scheduler(request: pytest.FixtureRequest) -> None:
    """pytest 9.2 with pytest-xdist 3.8 ignores groups without a word: what a group makes once is then made by every worker."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("groups count with -n only")
    assert request.node.nodeid.endswith("@grouped")
