"""The inbox without a browser: what is shown, what is kept, what leaves. And what the script of the browser may not contain."""
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("anywidget", reason="the inbox needs anywidget: pip install 'email-trm[lab]'")

from email_trm.core.errors import ConfigError, DataError
from email_trm.data.feedback import Correction, FeedbackStore
from email_trm.data.store import to_table
from email_trm.evaluation.metrics import synthetic_predictions
from email_trm.mail.message import Email
from email_trm.mail.text import fold_case
from email_trm.widgets.inbox import (
    PAGE,
    Filters,
    InboxModel,
    InboxSession,
    InboxWidget,
    ParquetMails,
    answer,
    facts_of,
    filters_from,
    inbox,
    keys_for,
)

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["work", "personal", "newsletter", "finance", "spam"]
SECRET = "xylophone"  # A word that stands in every body, and nowhere else
FILES = [ROOT / "email_trm" / "widgets" / name for name in ("inbox.js", "inbox.css")]
BAD = (r"https?:|//\w+\.\w|\bimport\b|@import|url\(|\bfetch\b|XMLHttpRequest|WebSocket|sendBeacon|innerHTML|outerHTML|insertAdjacentHTML"
    r"|document\.write|DOMParser|\beval\b|new Function|srcdoc")
SVG = "http://www.w3.org/2000/svg"  # A name that loads nothing


def mailbox(n: int = 300) -> tuple[list[Email], pd.DataFrame]:
    """A SYNTHETIC mailbox with SYNTHETIC predictions."""
    made = synthetic_predictions(NAMES, n)
    places = ["İstanbul", "Ankara", "London", "Vienna"]
    when = [None if k % 50 == 0 else f"2026-01-{1 + k % 28:02}T08:00:00+00:00" for k in range(n)]
    mails = [Email(row.id, f"Trip to {places[k % 4]} {k}", f"A {SECRET} number {k}\n-- \nAda", f"Ada {k % 7} <ada{k % 7}@example.org>",
        category=None if k % 10 == 0 else row.category, language=row.language, timestamp=when[k])
        for k, row in enumerate(made.itertuples())]
    return mails, made


@pytest.fixture
def model(tmp_path: Path) -> InboxModel:
    """An inbox with predictions and actions, and a feedback store of its own; no model."""
    mails, made = mailbox()
    actions = pd.DataFrame({"id": made["id"][::2], "action": ["archive", "delete", "reply_now"] * 50, "confidence": 0.5, "priority": 0.25})
    return InboxModel(mails, made, actions, feedback=tmp_path / "feedback")


CHOICES = [
    Filters(),
    Filters(categories=("work",)),
    Filters(categories=("work", "spam"), languages=("tr",)),
    Filters(actions=("archive",), low=0.4, high=0.9),
    Filters(disagree=True),
    Filters(disagree=True, languages=("en",), words="istanbul"),
    Filters(words="ISTANBUL ada3", low=0.2),
    Filters(corrected=True),
    Filters(corrected=True, categories=("finance",)),
    Filters(words="nothing of the kind"),
]


@pytest.mark.parametrize("filters", CHOICES)
def test_filters_are_joined(model: InboxModel, filters: Filters) -> None:
    """Every combination selects what plain Python says, and `and` joins the conditions."""
    for k in (3, 4, 5):
        model.correct(f"synthetic-{k:04d}", "finance")

    def passes(row: dict) -> bool:
        said, label = (row["said"] if isinstance(row["said"], str) else None), (row["label"] if isinstance(row["label"], str) else None)
        shown, truth = said or row["predicted"], said or label
        return ((not filters.categories or shown in filters.categories) and (not filters.languages or row["language"] in filters.languages)
            and (not filters.actions or row["action"] in filters.actions) and filters.low <= row["confidence"] <= filters.high
            and (not filters.disagree or (truth is not None and truth != row["predicted"])) and (not filters.corrected or said is not None)
            and all(word in fold_case(row["sender"] + row["subject"]) for word in fold_case(filters.words).split()))
    wanted = {k for k, row in enumerate(model.frame.to_dict("records")) if passes(row)}
    assert set(model.select(filters).tolist()) == wanted
    assert wanted or filters.words.startswith("nothing")


@pytest.mark.parametrize("sort", ["time", "sender", "subject", "answer", "confidence", "label", "action", "steps"])
@pytest.mark.parametrize("down", [True, False])
def test_sorting_is_stable_and_puts_gaps_last(model: InboxModel, sort: str, down: bool) -> None:
    """Equal mails stay in the order of the mailbox; those without a value come last, up or down."""
    rows = model.select(sort=sort, down=down)
    assert sorted(rows.tolist()) == list(range(len(model)))
    values = model.frame[sort].iloc[rows]
    known = values.notna().to_numpy()
    assert known[:known.sum()].all()  # All gaps at the end
    folded = values[known].map(fold_case) if values.dtype == object or isinstance(values.dtype, pd.StringDtype) else values[known]
    assert folded.is_monotonic_decreasing if down else folded.is_monotonic_increasing
    for _, same in pd.Series(rows).groupby(values.to_numpy(), dropna=False):
        assert same.is_monotonic_increasing


@pytest.mark.parametrize(("start", "stop", "n"), [(0, 100, 100), (250, 350, 50), (300, 400, 0), (-50, 10, 10), (0, 10**9, PAGE), (10, 5, 0),
    (10**9, 10**9 + 5, 0)])
def test_pages_stay_within_bounds(model: InboxModel, start: int, stop: int, n: int) -> None:
    """A page never holds more than there is, nor more than `PAGE`."""
    rows = model.select(sort="subject", down=False)
    page = model.page(rows, start, stop)
    first = max(0, start)
    assert len(page) == n and [r["id"] for r in page] == model.frame["id"].iloc[rows[first:first + n]].tolist()


def test_disagreement_follows_the_person(model: InboxModel) -> None:
    """A mail whose label contradicts the model no longer does once a person confirms the model, and the other way round."""
    at = int(model.select(Filters(disagree=True))[0])
    name, said = model.frame.loc[at, ["id", "predicted"]]
    assert model.correct(name, said)["differs"] is False
    assert at not in model.select(Filters(disagree=True))
    other = next(c for c in NAMES if c != said)
    assert model.correct(name, other)["differs"] is True
    assert at in model.select(Filters(disagree=True))


def test_unknown_names_are_errors_for_people(model: InboxModel) -> None:
    """Each with a remedy, and none with a word of mail."""
    for action, kind in ((lambda: model.detail("x"), DataError), (lambda: model.why("x"), DataError),
            (lambda: model.correct("x", "work"), DataError),
            (lambda: model.correct("synthetic-0001", "wrok"), ConfigError), (lambda: model.select(sort="body"), ConfigError),
            (lambda: filters_from({"category": []}), ConfigError), (lambda: Filters(low=0.6, high=0.5), ConfigError)):
        with pytest.raises(kind) as found:
            action()
        assert found.value.remedy and SECRET not in str(found.value)


def test_corrections_land_in_the_store_and_can_be_undone(model: InboxModel, tmp_path: Path) -> None:
    """With the mail, the model's answer and `widget` as source; undo takes back one's own last word only."""
    name, store = "synthetic-0007", FeedbackStore(tmp_path / "feedback")
    was = model.frame["predicted"][7]
    other = next(c for c in NAMES if c != was)
    assert model.correct(name, other)["answer"] == other
    [kept] = store.latest()
    assert (kept.category, kept.source, kept.predicted, kept.mail) == (other, "widget", was, replace(model.mails[7], category=None))
    assert kept.confidence == pytest.approx(model.frame["confidence"][7])
    assert InboxModel(*mailbox(), feedback=tmp_path / "feedback").frame["said"][7] == other  # The next session knows
    model.correct(name, was)
    assert store.counts()["confirmed"] == 1
    assert model.undo()["said"] == other and store.said() == {name: other}
    assert model.undo()["said"] is None and store.said() == {} and model.undo() is None
    assert SECRET.encode() not in store.path.read_bytes()  # What was undone is gone
    model.correct(name, other)
    store.add(Correction(model.mails[7], "spam", "api"))
    with pytest.raises(DataError):
        model.undo()
    assert store.said() == {name: "spam"} and model.frame["said"][7] == "spam"


def test_a_word_said_twice_is_not_undone_in_the_store(model: InboxModel, tmp_path: Path) -> None:
    """What an earlier session said stays when a later one says it again and takes that back."""
    store = FeedbackStore(tmp_path / "feedback")
    store.add(Correction(model.mails[1], "spam", "widget", model.frame["predicted"][1]))
    again = InboxModel(*mailbox(), feedback=tmp_path / "feedback")
    again.correct("synthetic-0001", "spam")
    assert again.undo()["said"] == "spam" and store.said() == {"synthetic-0001": "spam"}


def test_synthetic_mail_is_kept_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Corrections of the sample do not get into the owner's feedback; those of other mail do."""
    monkeypatch.setenv("EMAIL_TRM_FEEDBACK", str(tmp_path / "own"))
    mails, made = mailbox(20)
    sample = InboxModel([replace(m, source="synthetic") for m in mails], made)
    sample.correct("synthetic-0001", "work")
    assert sample.apart and sample.store.said() and not (tmp_path / "own").exists()
    real = InboxModel(mails, made)
    assert not (tmp_path / "own").exists()  # Looking writes nothing
    real.correct("synthetic-0001", "work")
    assert FeedbackStore(tmp_path / "own").said() == {"synthetic-0001": "work"}


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_export_holds_no_text(model: InboxModel, tmp_path: Path, name: str) -> None:
    """Ids, numbers and labels of the rows that are shown; for the owner's eyes; nothing of others is replaced."""
    rows = model.select(Filters(languages=("tr",)), "confidence")
    assert model.export(tmp_path / name, rows) == len(rows)
    read = pd.read_csv(tmp_path / name) if name.endswith("csv") else pd.read_parquet(tmp_path / name)
    assert read["id"].tolist() == model.frame["id"].iloc[rows].tolist()
    assert np.allclose(read["p_work"], model.frame["p_work"].iloc[rows])
    everything = (tmp_path / name).read_bytes() + read.to_csv().encode()
    assert not any(word in everything for word in (SECRET.encode(), b"Trip to", b"example.org", b"Ada"))
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    (tmp_path / f"mine-{name}").write_text("mine")
    with pytest.raises(ConfigError):
        model.export(tmp_path / f"mine-{name}")
    assert (tmp_path / f"mine-{name}").read_text() == "mine"


def test_100000_mails_travel_in_small_pieces() -> None:
    """What is sent does not grow with the mailbox."""
    sizes = {}
    for n in (1_000, 100_000):
        mails, made = mailbox(n)
        session = InboxSession(InboxModel(mails, made))
        first = answer(session, {"kind": "select", "view": "v", "seq": 1, "filters": {"languages": ["en"]}, "sort": "confidence"})
        page = answer(session, {"kind": "page", "view": "v", "seq": 2, "start": 500, "stop": 600})
        assert first["n"] > 0.7 * n and len(page["rows"]) == 100
        sizes[n] = [len(json.dumps(m)) for m in (first, page, facts_of(session.model))]
    assert max(sizes[100_000]) < 60_000
    assert all(large < 1.2 * small for small, large in zip(*sizes.values(), strict=True))


def test_a_mail_on_disk_is_the_same_mail(tmp_path: Path) -> None:
    """An imported file is read row by row; pages and details are those of the mails in memory."""
    import pyarrow.parquet as pq

    mails, made = mailbox()
    pq.write_table(to_table(mails), tmp_path / "box.parquet", row_group_size=64)
    disk, memory = InboxModel(ParquetMails(tmp_path / "box.parquet"), made), InboxModel(mails, made)
    assert disk.page(disk.select(), 0, 100) == memory.page(memory.select(), 0, 100)
    for k in (0, 63, 64, 200, 299):
        assert disk.detail(f"synthetic-{k:04d}") == memory.detail(f"synthetic-{k:04d}")


def test_text_arrives_as_it_is(model: InboxModel) -> None:
    """Markup in a mail is text like any other, by zone; joined, the pieces are the mail."""
    nasty = Email("nasty", "<img src=x onerror=alert(1)>", "<script>alert(1)</script> & \ud800\n-- \nAda", "<b>@example.org")
    found = InboxModel([nasty]).detail("nasty")
    assert found["subject"] == nasty.subject
    zones = {kind: "".join(text for text, _ in pieces) for kind, pieces in found["zones"]}
    assert zones["written"] == "<script>alert(1)</script> & \n" or zones["written"].startswith("<script>alert(1)</script> & ")
    assert "Ada" in zones["signature"]
    json.dumps(found).encode("utf-8")


def test_errors_hold_no_word_of_a_mail(model: InboxModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An error that nobody foresaw is told by its kind."""
    def burst(name: str) -> None:
        raise ValueError(model.mails[0].body)
    monkeypatch.setattr(model, "detail", burst)
    said = answer(InboxSession(model), {"kind": "detail", "view": "v", "seq": 9, "id": "synthetic-0000"})
    assert (said["kind"], said["seq"], said["text"]) == ("error", 9, "that failed (ValueError)")
    assert SECRET not in json.dumps(said) + "".join(capsys.readouterr())


@pytest.mark.parametrize("message", [None, 3, [], {}, {"kind": None}, {"kind": "__init__"}, {"kind": "model"},
    {"kind": "select"}, {"kind": "select", "filters": 3}, {"kind": "select", "filters": {}, "sort": ["time"]},
    {"kind": "page", "start": None, "stop": 5}, {"kind": "detail", "id": ["x"]}, {"kind": "undo", "x": 1}])
def test_strange_messages_are_answered(model: InboxModel, message: object) -> None:
    """Whatever comes from the browser, an answer goes back."""
    said = answer(InboxSession(model), message)
    assert said["kind"] == "error" and said["text"]


def test_the_widget_passes_messages_on(model: InboxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer goes back, the facts follow what a person said, and neither state nor fallback holds a word of a mail."""
    shown, sent = inbox(model), []
    monkeypatch.setattr(shown, "send", sent.append)
    shown._handle_custom_msg({"kind": "select", "view": "v", "seq": 1, "filters": {}}, [])
    shown._handle_custom_msg({"kind": "correct", "view": "v", "seq": 2, "id": "synthetic-0001", "category": "spam"}, [])
    assert [m["kind"] for m in sent] == ["select", "correct"] and sent[0]["n"] == len(model)
    assert isinstance(shown, InboxWidget) and shown.facts["said"] == 1 == shown.facts["undo"]
    state = json.dumps({k: v for k, v in shown.get_state().items() if not k.startswith("_")}, default=str)
    fallback = json.dumps(shown._repr_mimebundle_(), default=str)
    assert not any(word in state + fallback for word in (SECRET, "Trip to", "example.org"))
    assert "300 mails" in fallback


def test_keys_do_not_clash() -> None:
    """Every key means one thing."""
    keys = [k for k in keys_for([str(n) for n in range(50)]).values() if k]
    assert len(set(keys)) == len(keys) and not set(keys) & set("jku/?")
    assert list(keys_for(NAMES).values()) == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_the_script_loads_nothing_and_writes_no_html(path: Path) -> None:
    """No address, no import, no request, and no way for text to become HTML or code."""
    text = path.read_text(encoding="utf-8").replace(f'"{SVG}"', "")
    assert not re.findall(BAD, text)


def test_those_checks_can_fail() -> None:
    """The pattern of the last test finds what it is for."""
    for line in ('x.innerHTML = "a"', 'import a from "b"', 'fetch("x")', "eval(x)", "url(x.png)", "https://a.b", '"//cdn.example"'):
        assert re.search(BAD, line), line
