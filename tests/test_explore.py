"""The notebooks for people, in JupyterLab, in a real browser: opened, run, used, looked at; and as apps."""
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Apps, Lab, Notebook, missing, write_notebook

REASON = f"no JupyterLab in a browser here: {missing()} is missing"
pytestmark = [pytest.mark.xdist_group("lab"), pytest.mark.skipif(bool(missing()), reason=REASON)]
NBS = Path(__file__).resolve().parent.parent / "nbs"
SMALL = ("from email_trm.widgets.inbox import InboxModel, inbox", "inbox(InboxModel.from_source('sample', limit=40, progress=False))")
QUICK = ("00_tour",)  # The others with `-m slow`; every notebook's cells run with the other notebooks in any case


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab on a copy of the notebooks, beside the reports they read."""
    home = tmp_path_factory.mktemp("explore")
    shutil.copytree(NBS / "explore", home / "nbs" / "explore")
    (home / "reports").symlink_to(NBS.parent / "reports")
    with Lab(home) as running:
        yield running


def correct(book: Notebook) -> None:
    """Select a mail, correct it by key; the store has it."""
    box = book.page.locator(".trm-inbox")
    box.locator("tbody tr[data-n]").first.click()
    box.locator("button[data-category]").first.wait_for()
    book.page.keyboard.press("3")
    box.locator('button[data-category][aria-pressed="true"]').wait_for()
    book.idle()
    assert book.python("print(len(box.store.said()))").strip() == "1"


def use_inbox(book: Notebook) -> None:
    """The same, and see why: this inbox has a model that says so."""
    correct(book)
    book.page.locator(".trm-inbox svg.plot").wait_for()


def nothing(book: Notebook) -> None:
    """Only looked at."""


USE: dict[str, Callable[[Notebook], None]] = {"00_tour": use_inbox, "01_your_mailbox": use_inbox, "04_bring_your_own_model": correct}
NAMES = [p.stem for p in sorted((NBS / "explore").glob("*.ipynb"))]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_in_the_lab(lab: Lab, name: str) -> None:
    """Every cell runs, what one operates works, the console is silent, and no other host is asked for anything."""
    with lab.open(f"nbs/explore/{name}.ipynb") as book:
        book.run_all()
        USE.get(name, nothing)(book)
        for theme in ("light", "dark"):
            book.theme(theme)
            assert book.shot(lab.folder / f"{name}-{theme}.png").stat().st_size > 20_000
        book.check()


def test_all_notebooks_are_there() -> None:
    """Those that the README promises."""
    assert NAMES == ["00_tour", "01_your_mailbox", "02_inside_the_trm", "03_rl_stages", "04_bring_your_own_model"]


@pytest.mark.slow
def test_apps(tmp_path: Path) -> None:
    """`make apps` lists the notebooks, shows text, pictures and widgets without code, and asks no other host for anything."""
    shutil.copytree(NBS / "explore", tmp_path / "explore")
    write_notebook(tmp_path / "explore" / "small.ipynb", *SMALL)
    with Apps(tmp_path / "explore") as apps:
        with apps.show("") as tab:
            assert [name for name in NAMES if not tab.page.get_by_text(f"{name}.ipynb").count()] == []
            assert tab.complaints == []
        with apps.show("render/small.ipynb") as tab:
            box = tab.page.locator(".trm-inbox")
            box.locator("tbody tr[data-n]").first.click()
            box.locator("svg.plot").wait_for()
            assert not tab.page.get_by_text("InboxModel").count()
            assert tab.shot(tmp_path / "small.png").stat().st_size > 20_000
            assert tab.complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_as_an_app(tmp_path: Path, name: str) -> None:
    """Each notebook as an app."""
    home = tmp_path / "nbs" / "explore"
    shutil.copytree(NBS / "explore", home)
    (tmp_path / "reports").symlink_to(NBS.parent / "reports")
    with Apps(home) as apps, apps.show(f"render/{name}.ipynb") as tab:
        tab.page.wait_for_timeout(2000)
        assert tab.page.locator("h1").count() == 1 and not tab.page.get_by_text("Traceback").count()
        assert not tab.page.get_by_text("quiet()").count()  # A line of code that each of them has
        tab.page.screenshot(path=str(tmp_path / f"{name}.png"), full_page=True)
        assert tab.complaints == []
