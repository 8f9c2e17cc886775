"""Explanations of mail that no notebook should hold: empty, huge and hostile, and errors and logs that keep quiet."""
import io
import json
import logging
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

pytest.importorskip("captum", reason="captum is not installed")

from email_trm.core.errors import ConfigError, ModelError
from email_trm.core.logs import start_logging
from email_trm.data.tokens import segment_texts, train_tokenizer
from email_trm.evaluation.explanations import UNKNOWN_WORD, answers_to, cleaned, delete_from, hide
from email_trm.mail.message import Email
from email_trm.mail.sample import sample_mailbox
from email_trm.serving.classifier import EmailClassifier
from email_trm.training.trainer import Recipe, build_model
from email_trm.trm.evidence import fit_evidence
from email_trm.trm.explain import ZONES, Explanation, count_terms, explain_mail, find_words, read, share_out

SECRET = "quetzalcoatl"
NASTY = '<script>alert("x")</script><img src=x onerror=alert(1)> \'"--> &amp; javascript:1'
MAILS = {
    "empty": Email("1"),
    "blank": Email("2", " \n\t", "\u200b\n", "\ufeff"),
    "one word": Email("3", body="invoice"),
    "one subject": Email("4", subject="Invoice"),
    "only a sender": Email("5", sender="Ada <ada@example.org>"),
    "punctuation": Email("6", body="!!! ??? ... — § ¶"),
    "emoji": Email("7", "🎉🎉", "👩‍👩‍👧 ok 🏳️‍🌈"),
    "Turkish": Email("8", "İSTANBUL FATURASI", "Iğdır'dan gelen faturanızı ödeyiniz, İyi günler", "Işık <isik@example.org>"),
    "Chinese": Email("9", "发票", "请查收附件中的发票。" * 50),
    "ligatures": Email("10", body="ﬁnance oﬃce ①②③ ｆｕｌｌ　ｗｉｄｔｈ"),
    "special tokens": Email("11", "[UNK] [SUBJECT] [BODY]", "[PAD] [MASK] [LIST] [SENDER] hello"),
    "one huge word": Email("12", "x" * 5000, "y" * 200_000),
    "very long": Email("13", "word " * 2000, "please find the invoice attached " * 20_000, "a" * 3000 + "@example.org"),
    "long words": Email("14", body=" ".join("unsubscribe" * 9 for _ in range(600))),
    "links": Email("15", body="pay http://shop.example/invoice/now/please?id=1 today"),
    "lone surrogate": Email("16", "a \ud800 b", "c \udfff d"),
    "headers": Email("17", "hi", "there", headers={"list-id": "<x.example.org>", "precedence": "bulk"}, in_reply_to="<1@x>"),
}


@pytest.fixture(scope="module", params=["with evidence", "without", "with a reader"])
def classifier(request: pytest.FixtureRequest) -> EmailClassifier:
    """A model with random weights: sums must be right whatever the weights are."""
    torch.manual_seed(0)
    mails = [m for m in sample_mailbox() if m.category][:200]
    names = sorted({str(m.category) for m in mails})
    tokenizer = train_tokenizer((t for m in mails for t in segment_texts(m)), 1200)
    labels, senders = np.array([names.index(str(m.category)) for m in mails]), np.array([m.sender for m in mails], dtype=object)
    table = fit_evidence(mails, labels, len(names), senders)[0] if request.param != "without" else None
    shape = {"token_size": 48, "reader_layers": 1, "reader_tokens": 40, "halt_max_steps": 2} if request.param == "with a reader" else {}
    model = build_model(Recipe(model={"hidden_size": 64, "pair_buckets": 512, "H_cycles": 2, **shape}), tokenizer, names, table)
    model.trm.embedding.token.weight.data[6:] *= 10
    return EmailClassifier(model, tokenizer)


class Tags(HTMLParser):
    """What a browser would take for tags and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}


def adds_up(e: Explanation) -> None:
    """Whether shares make up the difference, and everything that is a number is finite."""
    total = sum(w.score for w in e.words) + e.elsewhere
    assert total == pytest.approx(e.value - e.start + e.gap, abs=1e-3)
    assert sum(z.score for z in e.zones) == pytest.approx(total, abs=1e-6)
    assert abs(e.gap) <= 0.08 * max(1.0, abs(e.value - e.start))
    assert {w.zone for w in e.words} <= set(ZONES)
    assert all(len(weights) == len(e.words) for weights in e.attention.values())
    assert np.isfinite([e.probability, e.value, e.start, e.gap, *(w.score for w in e.words)]).all()


# ---- any mail --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MAILS)
def test_any_mail(classifier: EmailClassifier, name: str) -> None:
    """Every mail that can be classified can be explained, agrees with the answer, adds up, and can be written as JSON and HTML."""
    mail = MAILS[name]
    e, answer = classifier.explain(mail), classifier.predict(mail)[0]
    assert (e.category, e.halted_at) == (answer.category, answer.steps)
    assert e.probability == pytest.approx(answer.confidence, abs=1e-4)
    adds_up(e)
    json.dumps(e.to_dict(), allow_nan=False)
    assert e.text() and Tags(e._repr_html_()).tags <= {"div", "span", "p", "b", "table", "tr", "td", "tbody"}


def test_tokens_have_owners(classifier: EmailClassifier) -> None:
    """One owner per token, in order, and markers belong to nobody."""
    for mail in MAILS.values():
        seen = read(classifier.model, classifier.tokenizer, mail)
        assert len(seen.owner) == seen.input_ids.shape[1] == seen.segment_ids.shape[1]
        assert seen.owner.max(initial=-1) < len(seen.words)
        words = seen.owner[seen.owner >= 0]
        assert (np.diff(words) >= 0).all()
        assert all(seen.words[o].segment == s for o, s in zip(seen.owner, seen.segment_ids[0].tolist(), strict=True) if o >= 0)


def test_empty_mail_moves_nothing(classifier: EmailClassifier) -> None:
    """Without words there is nothing to deal out."""
    e = classifier.explain(MAILS["empty"])
    assert (e.words, e.zones, e.evidence) == ([], [], []) and e.value == pytest.approx(e.start, abs=1e-5)


def test_one_word_gets_everything(classifier: EmailClassifier) -> None:
    """The only word of a mail has the whole difference."""
    e = classifier.explain(MAILS["one word"])
    assert [w.text for w in e.words] == ["invoice"]
    assert e.words[0].score == pytest.approx(e.value - e.start + e.gap, abs=1e-4) and e.words[0].score != 0


def test_long_mail_is_quick_and_short(classifier: EmailClassifier) -> None:
    """A mail of 600,000 characters costs about as much as the part of it that is read."""
    began = time.process_time()
    pages = [classifier.explain(MAILS[name])._repr_html_() for name in ("very long", "one huge word")]
    assert time.process_time() - began < 20
    assert max(map(len, pages)) < 1_000_000 and "y" * 100 not in pages[1]


def test_links_are_counted_elsewhere(classifier: EmailClassifier) -> None:
    """The evidence counts the path of a link that the tokens leave out; its share is not lost."""
    if classifier.model.evidence is None:
        pytest.skip("this model counts nothing")
    counted = count_terms(classifier.model.evidence, MAILS["links"])
    assert not any("please" in w.text for w in find_words(MAILS["links"]))
    adds_up(classifier.explain(MAILS["links"]))
    assert (classifier.explain(MAILS["links"]).elsewhere != 0) == bool({"invoice", "please"} & set(counted.terms))


def test_headers_are_words(classifier: EmailClassifier) -> None:
    """What the headers say has a share, and none in what is counted."""
    found = [w for w in classifier.explain(MAILS["headers"]).words if w.zone == "headers"]
    assert found and all(w.counted == 0 for w in found)


def test_same_answer_twice_and_no_traces(classifier: EmailClassifier) -> None:
    """Explaining is deterministic, leaves no gradient and changes no weight, also under inference mode."""
    mail = [m for m in sample_mailbox() if m.category][3]
    before = {k: v.clone() for k, v in classifier.model.state_dict().items()}
    first = classifier.explain(mail)
    with torch.inference_mode():
        second = classifier.explain(mail)
    with torch.no_grad():
        third = classifier.explain(mail)
    assert first.to_dict() == second.to_dict() == third.to_dict()
    assert all(p.grad is None for p in classifier.model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in classifier.model.state_dict().items())


def test_more_points_smaller_gap(classifier: EmailClassifier) -> None:
    """The gap is the error of the integral: it goes to zero."""
    mail = [m for m in sample_mailbox() if m.category][3]
    seen = read(classifier.model, classifier.tokenizer, mail)
    counted = None if classifier.model.evidence is None else count_terms(classifier.model.evidence, mail)
    gaps = [abs(share_out(classifier.model, seen, counted, 0, 3, points=n).gap) for n in (2, 64)]
    assert gaps[1] < 1e-2 and gaps[1] <= gaps[0] + 1e-5


# ---- hostile text ----------------------------------------------------------------------------------------------------------
def test_html_is_escaped(classifier: EmailClassifier) -> None:
    """Markup in any field stays text."""
    page = classifier.explain(Email("1", NASTY, f"{NASTY}\n> {NASTY}\n-- \n{NASTY}", NASTY))._repr_html_()
    tags = Tags(page)
    assert tags.tags <= {"div", "span", "p", "b", "table", "tr", "td", "tbody"} and tags.names <= {"style", "title"}
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page


def test_category_names_are_escaped(classifier: EmailClassifier) -> None:
    """Names of categories come from a model folder, which may be a stranger's."""
    e = replace(classifier.explain(MAILS["one word"]), category=NASTY, predicted=NASTY + "2", rival=NASTY)
    e = replace(e, beliefs=[replace(b, probabilities={NASTY: 0.5}) for b in e.beliefs])
    assert "<script" not in e._repr_html_() and "<img" not in e._repr_html_()


# ---- silence ---------------------------------------------------------------------------------------------------------------
def test_repr_and_logs_hold_no_text(classifier: EmailClassifier) -> None:
    """What is logged by accident is `repr`, and it holds no word of the mail."""
    stream = io.StringIO()
    handler = start_logging("DEBUG", stream)
    try:
        e = classifier.explain(Email("1", f"{SECRET} subject", f"{SECRET} body", f"{SECRET} <{SECRET}@example.org>"))
        logging.getLogger("email_trm").warning("%r %s", e, e)
    finally:
        logging.getLogger("email_trm").removeHandler(handler)
    assert SECRET not in stream.getvalue() and SECRET not in repr(e) and SECRET not in str(e) and SECRET not in f"{e}"
    assert SECRET in e.text(30)


def test_errors_hold_no_text(classifier: EmailClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong names, a model in training mode and a missing captum are said without quoting the mail."""
    mail = Email("1", SECRET, SECRET)
    with pytest.raises(ConfigError) as unknown:
        classifier.explain(mail, "no such category")
    with pytest.raises(ConfigError) as baseline:
        explain_mail(classifier.model, classifier.tokenizer, mail, baseline="mean")
    with pytest.raises(ConfigError) as output:
        explain_mail(classifier.model, classifier.tokenizer, mail, output="odds")
    classifier.model.train()
    with pytest.raises(ModelError) as training:
        classifier.explain(mail)
    classifier.model.eval()
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfigError, match="pip install") as missing:
        classifier.explain(mail)
    for error in (unknown, baseline, output, training, missing):
        assert SECRET not in str(error.value) and error.value.remedy


# ---- deletion --------------------------------------------------------------------------------------------------------------
def test_hidden_words_are_gone_for_both(classifier: EmailClassifier) -> None:
    """Hiding a word takes it from tokens and counts, and nothing else; hiding all leaves an empty mail's answer."""
    mail = cleaned([m for m in sample_mailbox() if m.category][5])
    seen = read(classifier.model, classifier.tokenizer, mail)
    at = next(i for i, w in enumerate(seen.words) if w.segment == 3)
    row, rest = hide(seen, [at])
    changed = [i for i, (a, b) in enumerate(zip(row["input_ids"], seen.input_ids[0].tolist(), strict=True)) if a != b]
    assert changed and set(seen.owner[changed]) == {at} and all(row["input_ids"][i] == 1 for i in changed)
    assert rest.body.startswith(UNKNOWN_WORD) and (rest.subject, rest.sender) == (mail.subject, mail.sender)
    if classifier.model.evidence is not None:
        everything = hide(seen, range(len(seen.words)))[1]
        assert count_terms(classifier.model.evidence, everything).terms == []
        p = answers_to(classifier.model, [hide(seen, []), hide(seen, [at])])
        assert p[0] != pytest.approx(p[1], abs=1e-6)


def test_deletion_rows_hold_no_text(classifier: EmailClassifier) -> None:
    """The test's rows are names and numbers; a mail without words gives none."""
    rng = np.random.default_rng(0)
    rows = delete_from(classifier.model, classifier.tokenizer, Email("m1", SECRET, f"{SECRET} {SECRET}"), (1, 2, 50), ("score", "lot"), rng)
    assert SECRET not in json.dumps(rows, default=float) and len(rows) == 6
    assert {r["fall"] for r in rows if r["k"] == 50} == {rows[2]["random"]}
    assert delete_from(classifier.model, classifier.tokenizer, Email("m2"), (1,), ("score",), rng) == []
