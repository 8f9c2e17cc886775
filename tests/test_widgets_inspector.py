"""The inspector answers as the classifier does, whatever is typed and however fast; and its curve is that of the evaluation."""
import itertools
import json
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from email_trm.core.errors import ConfigError, DataError
from email_trm.data.manager import EmailDatasetManager
from email_trm.data.schema import to_mails
from email_trm.evaluation.halting import exit_scores, policy_curves
from email_trm.mail.message import Email
from email_trm.serving.classifier import EmailClassifier
from email_trm.training.trainer import dataset_for, record_steps
from email_trm.trm.calibration import halting_steps

pytest.importorskip("anywidget", reason="widgets need the extra 'lab'")
from email_trm.widgets.inspector import (
    InspectorModel,
    InspectorSession,
    LiveSession,
    curve_of,
    inspector,
    place_of,
    record,
)

pytestmark = pytest.mark.xdist_group("inspector")
ODD = [("", "", ""), ("a" * 5000, "b" * 5000, "c " * 50_000),
    ("\u202e\x00\ud83d<x@example.org>", "<script>alert(1)</script>", "İıŞş 🙂 \n\r\t" * 40),
    ("not an address", "Re: " * 200, "https://shop.example/a?b=c#d " * 30)]


@pytest.fixture(scope="module")
def classifier() -> EmailClassifier:
    """The model in the box."""
    return EmailClassifier.from_pretrained()


@pytest.fixture(scope="module")
def sample() -> list[Email]:
    """The synthetic sample."""
    return to_mails(EmailDatasetManager("sample").load().frame)


def question(mail: Email, seq: int, view: str = "a", halt: float = 1.0, steps: int = 2) -> dict:
    """What the page sends."""
    return {"kind": "read", "view": view, "seq": seq, "sender": mail.sender,
        "subject": mail.subject, "body": mail.body, "halt": halt, "max_steps": steps}


def until(true, seconds: float = 60.0) -> None:
    """Wait for something to become true."""
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.02)


# ---- answers ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("halt", [0.0, 0.8, 0.9, 1.0])
def test_answers_are_those_of_the_classifier(classifier: EmailClassifier, sample: list[Email], halt: float) -> None:
    """At each threshold: a classifier loaded with that threshold says the same, to the last bit."""
    other, model = EmailClassifier.from_pretrained(halt=halt), InspectorModel(classifier)
    taken = set()
    for mail in sample[40:70]:
        bare = Email(mail.id, mail.subject, mail.body, mail.sender)
        want, have = other.predict(bare)[0], model.read(mail.sender, mail.subject, mail.body, halt, 2)
        assert (have.category, have.confidence, have.probabilities, have.steps, have.language) == (
            want.category, want.confidence, want.probabilities, want.steps, want.language)
        taken.add(have.steps)
    assert taken == ({1} if halt == 0 else {2} if halt == 1 else {1, 2})  # both ways are walked
    assert classifier.model.config.halt_threshold == InspectorModel(classifier).halt  # and nobody moved the classifier's own


def test_explanations_are_of_the_answer(classifier: EmailClassifier, sample: list[Email]) -> None:
    """Belief after each step and the step that is explained are those of the answer."""
    model = InspectorModel(classifier)
    for halt, mail in itertools.product((0.85, 1.0), sample[5:8]):
        asked = mail.sender, mail.subject, mail.body, halt, 2
        answer, why = model.read(*asked), model.why(*asked)
        assert (why.predicted, why.halted_at, len(why.beliefs)) == (answer.category, answer.steps, len(answer.beliefs))
        for a, b in zip(answer.beliefs, why.beliefs, strict=True):
            assert a.q == pytest.approx(b.q, abs=1e-4) and a.probabilities == pytest.approx(b.probabilities, abs=1e-4)


@pytest.mark.parametrize("texts", ODD)
def test_any_text_has_an_answer(classifier: EmailClassifier, texts: tuple[str, str, str]) -> None:
    """Nothing somebody can type ends the session."""
    sent: list[dict] = []
    session = InspectorSession(InspectorModel(classifier), sent.append, Email("a"))
    session.receive(question(Email("a", texts[1], texts[2], texts[0]), 1))
    assert session.answer(0)
    assert [m["kind"] for m in sent] == ["answer", "why"], sent
    json.dumps(sent, allow_nan=False)


def test_more_steps_than_learned(classifier: EmailClassifier, sample: list[Email]) -> None:
    """The slider may go further than the training did; the first steps stay what they were."""
    far, near, mail = InspectorModel(classifier, steps=4), InspectorModel(classifier), sample[3]
    a, b = far.read(mail.sender, mail.subject, mail.body), near.read(mail.sender, mail.subject, mail.body)
    two = far.read(mail.sender, mail.subject, mail.body, 1.0, 2)
    assert (len(a.beliefs), a.beliefs[:2], two.probabilities) == (4, b.beliefs, b.probabilities)
    with pytest.raises(ConfigError):
        near.read("", "", "", 1.0, 3)


# ---- the curve -------------------------------------------------------------------------------------------------------------
def test_curve_is_that_of_the_evaluation(classifier: EmailClassifier, sample: list[Email]) -> None:
    """Same record, same policies, same numbers; a place is on the curve, and the labels matter."""
    mails = sample[:90]
    known = [m for m in mails if m.category]
    recorded = record(InspectorModel(classifier), mails)
    theirs = record_steps(classifier.model, dataset_for(classifier.model, classifier.tokenizer, known, classifier.categories), 64)
    assert all(np.array_equal(a, b) for a, b in zip(recorded, theirs, strict=True))
    curve, policies = curve_of(recorded), policy_curves(*recorded).query("policy == 'q'")
    for name in ("mean_steps", "accuracy", "macro_f1"):
        assert curve[name].tolist() == policies[name].tolist()
    for halt in (0.0, 0.77, 0.9, 1.0):
        place, at = place_of(recorded, halt, 2), halting_steps(recorded.q, halt)
        assert {k: place[k] for k in ("mean_steps", "accuracy", "macro_f1")} == exit_scores(recorded.logits.argmax(-1), recorded.labels, at)
        assert place["further"] == np.mean(at == 1)
    swapped = recorded._replace(labels=np.roll(recorded.labels, 1))
    assert curve_of(swapped)["accuracy"].max() < curve["accuracy"].min()


# ---- what is stale ---------------------------------------------------------------------------------------------------------
def test_a_storm_of_keys(classifier: EmailClassifier, sample: list[Email]) -> None:
    """Hundreds of questions, faster than answers: few are answered, in order, the last one fully; a late one never."""
    sent: list[dict] = []
    session = LiveSession(InspectorModel(classifier), sent.append, sample[0])
    session.start()
    mail = sample[1]
    for seq in range(1, 301):
        session.receive(question(Email("a", mail.subject, mail.body[:seq], mail.sender), seq))
        time.sleep(0.003)
    session.receive(question(sample[2], 150))  # came late
    until(lambda: sent and (sent[-1]["kind"], sent[-1]["seq"]) == ("why", 300))
    time.sleep(0.3)
    answers, whys = ([m["seq"] for m in sent if m["kind"] == kind] for kind in ("answer", "why"))
    assert answers == sorted(set(answers)) and answers[-1] == 300 and len(answers) < 150
    assert 150 not in answers[answers.index(300) + 1:] and whys[-1] == 300 and len(whys) < len(answers)
    for seq in whys[:-1]:  # whoever was explained had not been overtaken when it was sent
        assert answers.index(seq) < len(answers)
    session.close()
    for thread in session.threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in session.threads)


def test_views_do_not_hear_each_other(classifier: EmailClassifier, sample: list[Email]) -> None:
    """Two views of one widget count for themselves."""
    sent: list[dict] = []
    session = InspectorSession(InspectorModel(classifier), sent.append, sample[0])
    session.receive(question(sample[1], 7, "a"))
    session.receive(question(sample[2], 1, "b"))
    while session.answer(0):
        pass
    assert [(m["kind"], m["view"], m["seq"]) for m in sent] == [("answer", "a", 7), ("why", "a", 7), ("answer", "b", 1), ("why", "b", 1)]


def test_a_fault_ends_nothing_and_tells_nothing(classifier: EmailClassifier, sample: list[Email]) -> None:
    """An error of a library might quote the mail: only its name is sent. The next question is answered."""
    sent: list[dict] = []

    class Fragile(InspectorModel):
        def why(self, *asked):
            raise ValueError(f"cannot read {asked[2]}")

    session = InspectorSession(Fragile(classifier), sent.append, sample[0])
    for seq in (1, 2):
        session.receive(question(sample[seq], seq))
        session.answer(0)
    assert [m["kind"] for m in sent] == ["answer", "error"] * 2
    assert {m["text"] for m in sent if m["kind"] == "error"} == {"ValueError"}
    for message in (None, [], {"kind": "read"}, {"kind": "hello", "view": {"a": 1}}, question(sample[0], 3) | {"seq": "x"},
            {"kind": "place", "halt": "x"}):
        session.receive(message)
    assert not session.answer(0)


# ---- the widget ------------------------------------------------------------------------------------------------------------
def test_widget_answers_messages(classifier: EmailClassifier, sample: list[Email], monkeypatch: pytest.MonkeyPatch) -> None:
    """From a message of the browser to a message for it, by threads of its own; and no word of mail in what a notebook saves."""
    secret = Email("s", "a zyzzyva", "two quokkas were here", "Wombat <w@example.org>")
    widget = inspector(classifier, secret, [m for m in sample[:40] if m.category])
    sent: list[dict] = []
    monkeypatch.setattr(widget.session, "send", sent.append)
    widget.receive(widget, {"kind": "hello", "view": "v"}, [])
    widget.receive(widget, question(secret, 1, "v"), [])
    until(lambda: {"mail", "answer", "why", "curve"} <= {m["kind"] for m in sent})
    assert [m["body"] for m in sent if m["kind"] == "mail"] == [secret.body]
    widget.halt, widget.max_steps = 0.5, 1
    state = json.dumps(widget.get_state(), default=str)
    assert not any(word in state for word in ("zyzzyva", "quokka", "ombat"))
    assert json.loads(state)["halt"] == 0.5
    before = threading.active_count()
    widget.close()
    until(lambda: not any(t.is_alive() for t in widget.session.threads))
    assert threading.active_count() < before


def test_what_users_may_give(classifier: EmailClassifier, sample: list[Email]) -> None:
    """A folder, a record, a labelled set; nothing labelled is an error with a remedy."""
    widget = inspector(None, {"id": "r", "subject": "Hello", "body": "there", "sender": "ada@example.org"}, sample[:20])
    assert (widget.session.mail.subject, widget.facts["about"]) == ("Hello", "of your mails")
    assert inspector(classifier).facts["about"] == "synthetic sample mails"
    many = inspector(classifier, sample[0], [m for m in sample if m.category] * 3)
    assert many.facts["labelled"] == 1000 and many.facts["about"].endswith("drawn at random")
    with pytest.raises(DataError):
        inspector(classifier, sample[0], [Email("a")])


@pytest.mark.parametrize("name", ["inspector", "training"])
def test_browser_files(repo: Path, name: str) -> None:
    """What runs in the browser loads nothing and makes no HTML of text."""
    script, style = ((repo / "email_trm" / "widgets" / f"{name}.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    wrong = re.compile(r"https?:|\bwss?:|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
        r"|\bimport\b|\bfetch\b|XMLHttp|@import|url\(")
    assert not wrong.search(script) and not wrong.search(style), wrong.search(script + style)
    assert "textContent" in script and "export default { render }" in script
    assert wrong.search("a.innerHTML = b") and wrong.search('src = "https://cdn.example/x.js"') and wrong.search("@import 'x'")
