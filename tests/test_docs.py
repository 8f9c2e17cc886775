"""The scripts around the notebooks: README, docs normaliser, site check, drift gate."""
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import build
import drift
import guides
import nbformat
import pytest
import readme
from browser import OPTIONS, check_pages, find_chromium
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

ROOT = Path(__file__).resolve().parent.parent


def save(path: Path, *cells: nbformat.NotebookNode) -> Path:
    """A notebook with these cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


# ---- README ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("before", "after"), [
    ("![](../reports/x.png)", "![](reports/x.png)"),
    ("[a](core/00_errors.ipynb) [b](../LICENSE#top)", "[a](nbs/core/00_errors.ipynb) [b](LICENSE#top)"),
    ("[a](https://example.org/x) [b](#here) [c](mailto:a@example.org)", "[a](https://example.org/x) [b](#here) [c](mailto:a@example.org)"),
    ('<img src="../reports/x.png" width="300">', '<img src="reports/x.png" width="300">'),
    ("`[a](core/x.ipynb)`", "`[a](core/x.ipynb)`"),
    ("```\n[a](core/x.ipynb)\n```", "```\n[a](core/x.ipynb)\n```"),
    ("[`a`](core/x.ipynb)", "[`a`](nbs/core/x.ipynb)"),
])
def test_readme_links(before: str, after: str) -> None:
    """Relative links are seen from the root; addresses, fragments and code stay."""
    assert readme.rewrite_links(before, readme.from_root) == after


def test_readme_renders(tmp_path: Path) -> None:
    """Code and its text output are kept, hidden cells are not, and the result is the same each time."""
    shown = new_code_cell("print(1 + 1)", outputs=[new_output("stream", name="stdout", text="2\n")])
    path = save(tmp_path / "index.ipynb", new_markdown_cell("# T\n\n[a](../b.md)"), shown, new_code_cell("#| hide\nsecret = 1"))
    text = readme.render(path)
    assert "[a](b.md)" in text and "print(1 + 1)" in text and "    2" in text and "secret" not in text
    assert text == readme.render(path) and text.endswith("\n") and not text.endswith("\n\n")


def test_readme_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--check` writes nothing and exits 1 when the README is out of step, 0 when it is not."""
    notebook, target = save(tmp_path / "index.ipynb", new_markdown_cell("# T")), tmp_path / "README.md"
    def run(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["readme.py", "--notebook", str(notebook), "--readme", str(target), *more])
        return int(readme.main() or 0)

    assert run("--check") == 1 and not target.exists()
    assert run() == 0 and run("--check") == 0
    target.write_text("changed", encoding="utf-8")
    assert run("--check") == 1 and target.read_text(encoding="utf-8") == "changed"


# ---- pages -----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def site(tmp_path: Path) -> build.Site:
    """An empty repository."""
    (tmp_path / "nbs" / "core").mkdir(parents=True)
    return build.Site(tmp_path, tmp_path / "_docs" / "src")


def test_page_names_and_order(tmp_path: Path) -> None:
    """Numbers give the order and leave the address; rooms come in the order of the house."""
    made = ["index", "trm/00_a", "core/01_b", "core/00_c", "pipelines/p", "core/.ipynb_checkpoints/00_c", "elsewhere/x"]
    for name in made:
        save(tmp_path / f"{name}.ipynb", new_markdown_cell("# T"))
    found = [build.page_of(p.relative_to(tmp_path)).as_posix() for p in build.notebooks(tmp_path)]
    assert found == ["index.ipynb", "core/c.ipynb", "core/b.ipynb", "trm/a.ipynb", "pipelines/p.ipynb"]


def test_headings() -> None:
    """One H1, no jumps, documented names one below their section, and nothing inside a fence is touched."""
    texts = ["# T", "#### Deep", "```\n# comment\n```", "### `name`", "### `other`", "# Second", "### `third`"]
    assert build.level_headings(texts) == ["# T", "## Deep", "```\n# comment\n```", "### `name`", "### `other`", "## Second", "### `third`"]
    assert build.level_headings(["# T", "### `name`"])[1] == "## `name`"


def test_visible_cells() -> None:
    """Hidden cells and imports go, an exported source is folded after its documentation, the rest stays."""
    cells = [
        new_markdown_cell("# T"), new_code_cell("#| default_exp core.x"), new_code_cell("#| export\nimport os"),
        new_code_cell("#| export\ndef f():\n    'Doc.'"), new_code_cell("#| export\ndef g():\n    'Doc.'"),
        new_code_cell("#| hide\nsecret = 1"), new_code_cell("#| export\nLIMIT = 3"), new_code_cell("f()"),
    ]
    from fastcore.nbio import dict2nb
    shown = [(c.source, c.metadata.get("tags")) for c in build.visible_cells(dict2nb(new_notebook(cells=cells)))]
    first_lines = [source.split("\n")[0] for source, _ in shown]
    assert first_lines == ["# T", "show_doc(f)", "def f():", "show_doc(g)", "def g():", "LIMIT = 3", "f()"]
    assert [tags for source, tags in shown if source.startswith("def")] == [["hide-input"], ["hide-input"]]


def test_outputs() -> None:
    """Unknown forms go, known ones stay, an error is not shown."""
    rich = {"output_type": "display_data", "metadata": {}, "data": {"application/vnd.x": {}, "text/plain": ["a", "b"]}}
    assert [o.data for o in build.clean_outputs([rich])] == [{"text/plain": "ab"}]
    assert build.clean_outputs([{"output_type": "display_data", "metadata": {}, "data": {"application/vnd.x": {}}}]) == []
    with pytest.raises(build.DocsError, match="ZeroDivisionError"):
        build.clean_outputs([{"output_type": "error", "ename": "ZeroDivisionError", "evalue": "", "traceback": []}])


def test_normalise(site: build.Site) -> None:
    """A page is valid by the schema, has its title, its pictures and its links."""
    (site.root / "reports").mkdir()
    (site.root / "reports" / "x.png").write_bytes(b"png")
    save(site.root / "nbs" / "core" / "01_b.ipynb", new_markdown_cell("# B"))
    front = new_raw_cell("---\ntitle: A\ndescription: About a.\n---")
    words = "![p](../../reports/x.png) [b](01_b.ipynb#top) [gone](nothing.md)"
    path = save(site.root / "nbs" / "core" / "00_a.ipynb", front, new_markdown_cell(words), new_code_cell("1"))
    nb = build.normalise(site, path)
    nbformat.validate(nb)
    assert build.title_and_line(nb) == ("A", "About a.")
    assert nb.cells[1].source == "![p](../files/reports/x.png) [b](b.ipynb#top) [gone](nothing.md)"
    assert (site.src / "files" / "reports" / "x.png").exists()
    assert site.problems == ["nbs/core/00_a.ipynb: links to nothing.md, which is not in the repository"]


def test_no_title_is_a_problem(site: build.Site) -> None:
    """A page that starts without a title is named."""
    build.normalise(site, save(site.root / "nbs" / "core" / "00_a.ipynb", new_markdown_cell("just text")))
    assert "does not start with" in site.problems[0]


def test_api_markdown() -> None:
    """Heading with an address, signature with its comments, docstring."""
    text = build.api_markdown("email_trm.core.errors", "suggest")
    assert text.startswith("(def.email_trm.core.errors.suggest)=\n### `suggest`")
    assert "config:EmailTRMConfig, # Any" in build.api_markdown("email_trm.trm.config", "check_config")
    assert "# What the user wrote" in text and "did you mean" in text
    assert "class SourceError(" in build.api_markdown("email_trm.core.errors", "SourceError")


def test_symbol_links(site: build.Site) -> None:
    """Names link to their page from other pages only, and plain words never do."""
    site.symbols = {"SourceError": ("core/errors.ipynb", "class.x.sourceerror"), "text": ("mail/text.ipynb", "def.x.text")}
    line = "Raises `SourceError` on `text`."
    assert build.link_symbols(site, line, Path("mail/a.ipynb")) == "Raises [`SourceError`](#class.x.sourceerror) on `text`."
    assert build.link_symbols(site, line, Path("core/errors.ipynb")) == line


def test_site_check(tmp_path: Path) -> None:
    """Broken links, missing places, missing files and anything from the network are found; a good page is silent."""
    (tmp_path / "a.html").write_text('<h1 id="top">A</h1><a href="#top">t</a><a href="https://example.org">x</a>', encoding="utf-8")
    assert list(build.check_site(tmp_path)) == []
    bad = '<a href="gone.html">1</a><a href="a.html#nowhere">2</a><img src="gone.png"><script src="https://example.org/x.js"></script>'
    (tmp_path / "b.html").write_text(bad, encoding="utf-8")
    (tmp_path / "c.css").write_text("@import url(https://example.org/x.css);", encoding="utf-8")
    assert len(list(build.check_site(tmp_path))) == 5


# ---- guides ----------------------------------------------------------------------------------------------------------------
def test_a_guide_that_misleads_is_named(site: build.Site) -> None:
    """A dead link, a block without a mark and a wrong number each fail the build; drawings and marks become what readers see."""
    page = site.root / "docs" / "guides" / "maildir.md"
    page.parent.mkdir(parents=True)
    (site.root / "reports" / "x").mkdir(parents=True)
    (site.root / "reports" / "x" / "metrics.json").write_text('{"a": 2}', encoding="utf-8")
    block = "```sh\nls\n```\n"
    page.write_text(f"# T\n\n[gone](nothing.md) 1<!-- = x a d -->\n\n{block}\n<!-- not run: why -->\n{block}", encoding="utf-8")
    assert build.places(site.root)["docs/guides/maildir.md"] == "guides/maildir.md"
    text = build.written_page(site, "docs/guides/maildir.md", "guides/maildir.md")
    assert [problem.split(": ", 1)[1] for problem in site.problems] == ["line 5: a block of code has no mark, see docs/guides.py",
        "says 1, but x has 2 at a", "links to nothing.md, which is not in the repository"]
    assert "1<!--" not in text and "Not run by the tests: why." in text


def test_the_side_bar_has_its_sections() -> None:
    """Start, Guides, Concepts come first, and the pages that are no reports come last, after the reports."""
    assert list(guides.SECTIONS) == ["Start", "Guides", "Concepts"]
    places = [place.removesuffix(".md") for place in build.places(ROOT).values() if place.startswith("project/")]
    ordered = sorted(places, key=build.project_order)
    assert ordered[0] == "project/reports" and ordered[-len(build.ABOUT):] == build.ABOUT


SHOWN = ("guides/quick-start", "guides/maildir", "concepts/halting", "concepts/stages")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Some guides as a site of their own. Where links lead is checked by `make docs`: here they are words."""
    if not find_chromium():
        pytest.skip("Chromium is not installed: pages are not looked at")
    out = tmp_path_factory.mktemp("site")
    small = build.Site(ROOT, out / "src")
    for name in SHOWN:
        target = small.src / f"{name}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        text = build.written_page(small, f"docs/{name}.md", f"{name}.md")
        target.write_text(re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?:)[^)]+\)", r"\1", text), encoding="utf-8")
    (small.src / "index.md").write_text("# T\n\n" + build.toctree("Start", list(SHOWN)), encoding="utf-8")
    assert build.sphinx(small.src, out / "html", out / "doctrees") == 0 and small.problems == []
    yield out / "html"


def test_guides_in_a_browser(html: Path) -> None:
    """In light and dark, as wide as a phone: readable, nothing from the network, nothing that runs off the page.

    The theme says on the console which scheme it shows, and has a second title that only printers see: neither is a fault of a page.
    """
    theme = re.compile(r'console: "\[PST\]: |^\w+: 2 h1 headings$')
    for page, found in check_pages([html / f"{name}.html" for name in SHOWN]).items():
        assert [line for line in found if not theme.search(line)] == [], Path(page).name


def test_search_from_a_folder(html: Path, tmp_path: Path) -> None:
    """The search finds a page when the site is opened from disk, where scripts may read no other file."""
    options = [option for option in OPTIONS if option != "--allow-file-access-from-files"]
    address = (html / "search.html").as_uri() + "?q=exploration"
    command = [find_chromium() or "", *options, f"--user-data-dir={tmp_path}", "--virtual-time-budget=8000", address]
    found = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False).stdout
    results = re.search(r'<div id="search-results">.*?</ul>', found, re.DOTALL)
    assert results and 'href="concepts/halting.html"' in results[0]


# ---- drift -----------------------------------------------------------------------------------------------------------------
def test_drift_names_files() -> None:
    """Each kind of difference is told apart, and equal trees are silent."""
    before = {"email_trm/a.py": "1", "email_trm/old.py": "1", "nbs/a.ipynb": "1", "README.md": "1"}
    after = {"email_trm/a.py": "2", "email_trm/new.py": "1", "nbs/a.ipynb": "2", "README.md": "1"}
    lines = drift.differences(before, after)
    assert [line.split(":")[0] for line in lines] == ["email_trm/a.py", "email_trm/new.py", "email_trm/old.py", "nbs/a.ipynb"]
    assert "no notebook exports it" in lines[2] and drift.differences(before, before) == []


def test_drift_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A module edited by hand fails the gate, and the edit is still there afterwards."""
    drift.copy_tree(ROOT, tmp_path)
    module = tmp_path / "email_trm" / "core" / "errors.py"
    module.write_text(module.read_text(encoding="utf-8") + "\nedited = True\n", encoding="utf-8")
    before = drift.snapshot(tmp_path)
    assert drift.main(tmp_path) == 1 and drift.snapshot(tmp_path) == before
    assert "email_trm/core/errors.py: is not what its notebook says" in capsys.readouterr().err
