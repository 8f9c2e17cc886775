"""Widgets in JupyterLab, in a real browser: a notebook is opened, run, and used. Slow to start, so everything happens in one session."""
import json
from pathlib import Path

import pytest
from lab import Lab, Notebook, missing, write_notebook

from email_trm.core.runs import write_json
from email_trm.training.doctor import this_process

pytestmark = [pytest.mark.xdist_group("lab"),
    pytest.mark.skipif(bool(missing()), reason=f"no JupyterLab in a browser here: {missing()} is missing")]

CELLS = (
    "from email_trm.widgets.inbox import InboxModel, inbox",
    'model = InboxModel.from_source("sample", limit=120, progress=False)',
    "shown = inbox(model)\nshown",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """JupyterLab on a folder with two notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    write_notebook(folder / "inbox.ipynb", *CELLS)
    write_notebook(folder / "wrong.ipynb", "from IPython.display import Javascript",
        "Javascript('console.error(\"boom\"); new Image().src = \"https://elsewhere.example/x.png\"')", "1/0")
    with Lab(folder) as running:
        yield running


def said(book: Notebook) -> dict:
    """What the feedback store of the notebook's inbox holds, by mail."""
    book.idle()
    return json.loads(book.python("import json; print(json.dumps(model.store.said()))"))


def test_inbox(lab: Lab) -> None:
    """Filter, select, ask why, correct by key, undo, in light and dark; nothing complains and nothing is asked of the network."""
    with lab.open("inbox.ipynb", (1300, 1500)) as book:
        book.run_all()
        box = book.page.locator(".trm-inbox")
        rows, status = box.locator("tbody tr[data-n]"), box.get_by_role("status")
        status.get_by_text("120 of 120 mails").wait_for()
        assert 5 < rows.count() < 40  # Of 120: only what is seen
        box.get_by_role("button", name="tr ", exact=False).filter(has_text="tr").last.click()
        turkish = int(book.python("print((model.frame.language == 'tr').sum())"))
        status.get_by_text(f"{turkish} of 120 mails").wait_for()
        rows.first.click()
        box.locator("svg.plot").wait_for()
        assert box.locator("mark.for").count() and box.locator(".zone.written").count()
        name = book.python("print(shown.selected)").strip()
        assert book.python(f"print(model.frame.language[model.place({name!r})])").strip() == "tr"
        before = int(book.page.evaluate("() => jupyterapp.shell.currentWidget.content.widgets.length"))
        for key, category in zip("70", ("finance", "other"), strict=True):
            book.page.keyboard.press(key)
            box.locator(f'button[data-category="{category}"][aria-pressed="true"]').wait_for()
            assert said(book) == {name: category}
        book.page.keyboard.press("u")
        status.get_by_text("Undone").wait_for()
        assert said(book) == {name: "finance"}
        for key in ("0", "0", "d", "d", "b", "x"):  # 0 0 restarts a kernel, d d and x remove a cell: not in here
            book.page.keyboard.press(key)
        book.idle()
        assert book.page.locator(".jp-Dialog").count() == 0
        assert int(book.page.evaluate("() => jupyterapp.shell.currentWidget.content.widgets.length")) == before
        for theme in ("light", "dark"):
            book.theme(theme)
            assert book.shot(lab.folder / f"{theme}.png", ".trm-inbox").stat().st_size > 10_000
        book.check()


def test_a_large_mailbox_scrolls(lab: Lab) -> None:
    """The last of 100,000 mails shows up, with no more rows in the page than fit."""
    made = ("from email_trm.evaluation.metrics import synthetic_predictions\nfrom email_trm.mail.message import Email\n"
        "made = synthetic_predictions(['work', 'spam'], 100_000)\n"
        "mails = [Email(i, f'Subject {k}', 'x', 'a@example.org', source='synthetic') for k, i in enumerate(made.id)]")
    write_notebook(lab.folder / "large.ipynb", CELLS[0], made, "inbox(InboxModel(mails, made))")
    with lab.open("large.ipynb") as book:
        book.run_all()
        box = book.page.locator(".trm-inbox")
        box.get_by_role("status").get_by_text("100,000 of 100,000 mails").wait_for()
        box.get_by_role("button", name="Subject").click()
        box.locator("tbody tr[data-n]").nth(2).get_by_text("Subject 10", exact=True).wait_for()
        box.get_by_role("grid").focus()
        book.page.keyboard.press("End")
        box.locator("tbody tr[data-n]").last.get_by_text("Subject 99999").wait_for()
        assert box.locator("tbody tr").count() < 40
        book.check()


INSPECTOR = (
    "from email_trm.mail.message import Email\nfrom email_trm.mail.sample import sample_mailbox",
    "from email_trm.widgets.inspector import inspector",
    "shown = inspector(mail=Email('a', 'Fatura', 'Ekteki faturanın son ödeme tarihi yarın.'), labelled=sample_mailbox(60))\nshown",
)


def test_inspector(lab: Lab) -> None:
    """What is typed is answered and explained; the sliders move the answer, the place on the curve, and Python's own values."""
    write_notebook(lab.folder / "inspector.ipynb", *INSPECTOR)
    with lab.open("inspector.ipynb", (1300, 1300)) as book:
        book.run_all()
        box = book.page.locator(".trm-inspector")
        answer, note = box.locator(".answer"), box.locator(".answer + .note")
        note.get_by_text("language tr").wait_for()
        subject, body = box.get_by_label("Subject"), box.get_by_label("Body")
        assert subject.input_value() == "Fatura"
        subject.fill("Your parcel is on its way")
        body.press_sequentially(" dd00 The courier brings order 4711 tomorrow.")  # d d and 0 0 are JupyterLab's: not in here
        note.get_by_text("language en").wait_for()
        words = f"'', {subject.input_value()!r}, {body.input_value()!r}"
        said = book.python(f"a = shown.session.model.read({words}, shown.halt, shown.max_steps)\n"
            "print(a.category, f'{100 * a.confidence:.1f} %', sep='/')")
        for part in said.strip().split("/"):  # What Python says about the same words
            answer.filter(has_text=part).wait_for()
        box.locator(".words:not(.old) mark").first.wait_for()
        box.get_by_text("Here:").wait_for()
        here = box.get_by_text("Here:").inner_text()
        box.get_by_label("Halting threshold").fill("0")
        note.get_by_text("after 1 step of").wait_for()
        box.get_by_text(", 0 % read closely").wait_for()
        assert here != box.get_by_text("Here:").inner_text() and book.python("print(shown.halt)").strip() in ("0", "0.0")
        book.python("shown.halt = 1.0")  # From Python, and the page follows
        note.get_by_text("after 2 steps of 2").wait_for()
        assert box.get_by_label("Halting threshold").input_value() == "1"
        assert book.page.locator(".jp-Dialog").count() == 0
        for theme in ("light", "dark"):
            book.theme(theme)
            assert book.shot(lab.folder / f"inspector-{theme}.png", ".trm-inspector").stat().st_size > 10_000
        book.check()


def journal(folder: Path, name: str, *rows: dict) -> None:
    """Lines of a training, as another process appends them. SYNTHETIC."""
    place = folder / "checkpoints" / "main" / f"{name}.jsonl"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def test_dashboard(lab: Lab) -> None:
    """A training that runs elsewhere appears, moves on and ends on the page, and stops being watched when one says so."""
    run = lab.folder / "run"
    write_notebook(lab.folder / "dashboard.ipynb", "from email_trm.widgets.training import dashboard",
        "shown = dashboard('run', every=0.2)\nshown")
    with lab.open("dashboard.ipynb", (1300, 1300)) as book:
        book.run_all()
        box = book.page.locator(".trm-training")
        state = box.get_by_role("status")
        state.get_by_text("waiting").wait_for()
        write_json(run / "run.json", {"status": "running", "process": this_process()})
        journal(run, "progress", {"kind": "begin", "step": 0, "max_steps": 40, "epochs": 2},
            *({"kind": "update", "step": k, "epoch": k / 20, "loss": 1 / k, "learning_rate": 1e-3} for k in (5, 10, 15, 20)),
            {"kind": "evaluation", "step": 20, "epoch": 1, "loss": 0.9, "macro_f1": 0.5, "f1_work": 0.6, "f1_travel": 0.4})
        state.get_by_text("running").wait_for()
        box.get_by_text("update 20 of 40").wait_for()
        assert box.locator("tbody th").all_inner_texts() == ["travel", "work"]
        charts = box.locator("figure svg[role=img]")
        charts.first.hover()
        journal(run, "progress", {"kind": "update", "step": 40, "epoch": 2, "loss": 0.01, "learning_rate": 1e-5},
            {"kind": "end", "step": 40})
        write_json(run / "run.json", {"status": "finished"})
        state.get_by_text("finished").wait_for()
        assert "0.01" in charts.first.get_attribute("aria-label")
        box.get_by_role("button", name="Stop watching").click()
        box.get_by_role("button", name="Watch", exact=True).wait_for()
        assert book.python("print(shown.watching)").strip() == "False"
        for theme in ("light", "dark"):
            book.theme(theme)
            assert book.shot(lab.folder / f"dashboard-{theme}.png", ".trm-training").stat().st_size > 10_000
        book.check()


def test_complaints_are_heard(lab: Lab) -> None:
    """A failed cell, an error on the console and a request to another host are each found."""
    with lab.open("wrong.ipynb") as book:
        with pytest.raises(AssertionError, match="ZeroDivisionError"):
            book.run_all()
        book.page.wait_for_timeout(500)
        with pytest.raises(AssertionError) as found:
            book.check()
        text = str(found.value)
        assert "ZeroDivisionError" in text and "boom" in text and "https://elsewhere.example" in text
