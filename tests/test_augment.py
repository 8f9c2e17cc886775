"""Augmentation: it repeats, keeps labels, obeys its switches, takes any text, and never reaches mail that is held out."""
import copy
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from email_trm.core.errors import ConfigError, DataError
from email_trm.data.augment import (
    CASES,
    MARK,
    OPERATIONS,
    SYNONYMS_EN,
    SYNONYMS_TR,
    TEMPLATES_EN,
    TEMPLATES_TR,
    AugmentConfig,
    SenderPool,
    augment,
    augment_split,
    count_operations,
    domain_type,
    in_ascii,
    in_case,
    is_augmented,
    only,
    operations,
    paraphrase_subject,
    random_of,
    sender_kind,
    to_lower,
    to_upper,
)
from email_trm.data.schema import to_frame, to_mails
from email_trm.data.splits import Split, split
from email_trm.mail.message import Email, address
from email_trm.mail.sample import sample_mailbox

KEPT = ("category", "alt_category", "language", "group", "source", "timestamp", "recipient", "cc", "message_id", "in_reply_to", "thread_id",
    "folder", "hint", "labels", "flags", "attachments", "repairs")
MAY_CHANGE = {  # operation -> fields it may change, besides the id and the mark in the headers
    "sender_swap": {"sender"}, "sender_dropout": {"sender"}, "subject_paraphrase": {"subject"}, "subject_dropout": {"subject"},
    "quote_removal": {"body"}, "zone_dropout": {"body"}, "token_dropout": {"subject", "body"}, "casing": {"subject", "body"},
    "turkish_ascii": {"subject", "body"},
}
ALL = only(probability=0.5)
REPLY = ("Thank you, the new terms look good to me and I will sign the lease on Friday.\n\n"
    "-----Original Message-----\nFrom: Can\n\n> Here are the terms.")


@pytest.fixture(scope="module")
def many() -> list[Email]:
    """Labelled synthetic mails, one in three a reply with a quote."""
    found = [m for m in sample_mailbox() if m.category][::2]
    quote = "\n\nOn Mon, 5 Jan 2026 at 10:00, Can <can@example.org> wrote:\n> Dear all,\n> see below."
    return [replace(m, body=m.body + quote) if i % 3 == 0 else m for i, m in enumerate(found)]


@pytest.fixture(scope="module")
def mails(many: list[Email]) -> list[Email]:
    """Some of them, where a few will do."""
    return many[::3]


@pytest.fixture(scope="module")
def cut(many: list[Email]) -> Split:
    """A cut of them."""
    return split(to_frame(many), "random", seed=0)


def dump(mails: list[Email]) -> bytes:
    """Every field of every mail, as bytes."""
    return json.dumps([asdict(m) for m in mails], sort_keys=True).encode()


# ---- it repeats ------------------------------------------------------------------------------------------------------------
def test_same_seed_same_bytes(mails: list[Email]) -> None:
    assert dump(augment(mails, ALL, seed=3, copies=2)) == dump(augment(mails, ALL, seed=3, copies=2))
    assert dump(augment(mails, ALL, seed=3)) != dump(augment(mails, ALL, seed=4))


def test_same_in_another_process(mails: list[Email], repo: Path) -> None:
    """Hash randomisation has no say."""
    code = ("import json, sys; from dataclasses import asdict; from email_trm.data.augment import augment, only\n"
        "from email_trm.mail.message import Email\n"
        "made = augment([Email(**r) for r in json.load(sys.stdin)], only(probability=0.5), seed=3)\n"
        "print(json.dumps([asdict(m) for m in made], sort_keys=True))")
    few = mails[:40]
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(repo)}
    run = [sys.executable, "-c", code]
    there = subprocess.run(run, env=environment, input=dump(few), capture_output=True, check=True)
    assert there.stdout.strip() == dump(augment(few, ALL, seed=3))


def test_order_and_neighbours_have_no_say(mails: list[Email]) -> None:
    """Shuffled, or augmented alone with the same pool, a mail gets the same copies."""
    shuffled, pool = random.Random(1).sample(mails, len(mails)), SenderPool.of(mails)
    expected = {m.id: m for m in augment(mails, ALL, seed=3, copies=2)}
    assert {m.id: m for m in augment(shuffled, ALL, seed=3, copies=2)} == expected
    alone = [made for m in mails[:15] for made in augment([m], ALL, seed=3, copies=2, pool=pool)]
    assert alone and all(expected[m.id] == m for m in alone)
    assert SenderPool.of(shuffled) == pool


def test_inputs_are_not_touched(mails: list[Email]) -> None:
    """Neither by augmenting nor by changing a copy afterwards."""
    before = dump(mails)
    for made in augment(mails, ALL, seed=0):
        made.headers["x"] = "y"
    assert dump(mails) == before and not any(map(is_augmented, mails))


# ---- it keeps labels -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_changes_only_its_fields(mails: list[Email], name: str) -> None:
    there, made = {m.id: m for m in mails}, augment(mails, only(name), seed=0)
    assert made, f"{name} applied to no mail of the sample"
    for m in made:
        old = there[m.id.removesuffix("+aug1")]
        changed = {f for f, v in asdict(m).items() if v != getattr(old, f)} - {"id", "headers"}
        assert changed and changed <= MAY_CHANGE[name]
        assert m.headers == {**old.headers, MARK: name}


def test_label_and_origin_stand(mails: list[Email]) -> None:
    there = {m.id: m for m in mails}
    for m in augment(mails, only(probability=0.9), seed=1, copies=3):
        old = there[m.id.rpartition("+aug")[0]]
        assert all(getattr(m, f) == getattr(old, f) for f in KEPT)
        assert m.headers[MARK] and set(m.headers[MARK].split()) <= set(OPERATIONS)


def test_ids_stay_unique(mails: list[Email]) -> None:
    made = augment(mails, ALL, copies=3)
    ids = [m.id for m in [*mails, *made]]
    assert len(set(ids)) == len(ids) and {m.id[-5:] for m in made} == {"+aug1", "+aug2", "+aug3"}


@pytest.mark.parametrize("subject", ["Lease", "Your invoice 12", "Minutes", "Trip information", "Password reset", "Reminder: dentist",
    "Question about the lease"])
@pytest.mark.parametrize("mark", ["", "Re: ", "FW: "])
def test_paraphrase_neither_makes_nor_drops_a_reply(subject: str, mark: str) -> None:
    """The reply mark is evidence for the category: it may be spelled differently, it may not come or go. Nor may shouting."""
    for i in range(12):
        made = paraphrase_subject(Email("x", mark + subject, language="en"), random.Random(i))
        if made is not None:
            first = made.subject.lower().split(":")[0].strip()
            assert (first in ("re", "fw", "fwd")) == bool(mark)
            assert first[0] == mark.lower()[:1] or not mark
            assert "!" not in made.subject and "urgent" not in made.subject.lower()


def test_tables_say_something_else() -> None:
    """No entry maps to itself; templates name only groups they have; nothing in them marks a reply or shouts."""
    for table, turkish in ((SYNONYMS_EN, False), (SYNONYMS_TR, True)):
        for word, others in table.items():
            assert word == to_lower(word, turkish) and all(to_lower(o, turkish) != word and o.strip() == o for o in others)
    for templates in (TEMPLATES_EN, TEMPLATES_TR):
        for pattern, others in templates:
            groups = re.compile(pattern).groups
            for other in others:
                other.format(*["x"] * groups)
                assert "!" not in other and not other.startswith(("re:", "fw", "urgent")) and "%" not in other


# ---- switches --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_switch_switches(mails: list[Email], name: str) -> None:
    """Off, it is never done; on for all, it is done wherever it applies; in between, about that often."""
    off = augment(mails, replace(only(), **{name: 0.0}), seed=0)
    assert name not in count_operations(off) and len(count_operations(off)) == len(OPERATIONS) - 1
    full = count_operations(augment(mails, only(name), seed=0, copies=3))[name]
    half = count_operations(augment(mails, only(name, probability=0.5), seed=0, copies=3))[name]
    assert abs(half / full - 0.5) < 3 * (0.25 / full) ** 0.5 + 1e-9


def test_everything_off_makes_nothing(mails: list[Email], cut: Split) -> None:
    off = AugmentConfig(**dict.fromkeys(OPERATIONS, 0.0))
    assert augment(mails, off) == [] and augment(mails, ALL, copies=0) == []
    assert augment_split(cut, off).parts["train"] is cut.parts["train"]


def test_one_switch_does_not_move_another(mails: list[Email]) -> None:
    """Each operation has its own random numbers: the swapped sender is the same, whatever else is on."""
    alone = {m.id: m.sender for m in augment(mails, only("sender_swap"), seed=0)}
    beside = {m.id: m.sender for m in augment(mails, only("sender_swap", "casing", "token_dropout"), seed=0)}
    assert alone and all(beside[i] == s for i, s in alone.items())


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan"), float("inf")])
def test_not_a_probability(wrong: float) -> None:
    with pytest.raises(ConfigError, match="not a probability"):
        AugmentConfig(casing=wrong)


def test_unknown_operation() -> None:
    with pytest.raises(ConfigError, match="no augmentation called"):
        only("sender_swop")


# ---- training only ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["random", "group"])
def test_held_out_parts_are_byte_identical(many: list[Email], kind: str) -> None:
    cut = split(to_frame(many), kind, seed=0)
    before = {p: dump(to_mails(f)) for p, f in cut.parts.items()}
    more = augment_split(cut, only(), seed=0)
    for part in ("validation", "test"):
        assert dump(to_mails(more.parts[part])) == before[part] and not any(map(is_augmented, to_mails(more.parts[part])))
    assert dump(to_mails(cut.parts["train"])) == before["train"]
    train = to_mails(more.parts["train"])
    assert dump(train[: len(cut.parts["train"])]) == before["train"] and all(map(is_augmented, train[len(cut.parts["train"]):]))
    assert (more.kind, more.seed) == (cut.kind, cut.seed)


def test_nothing_held_out_reaches_the_copies(many: list[Email]) -> None:
    """On a split by group, no sender of the held-out parts is swapped in."""
    cut = split(to_frame(many), "group", seed=0)
    held = {address(s) for p in ("validation", "test") for s in cut.parts[p]["sender"]}
    made = to_mails(augment_split(cut, only("sender_swap"), seed=0).parts["train"])
    assert len(made) > len(cut.parts["train"]) and not held & {address(m.sender) for m in made}


def test_refusals(cut: Split) -> None:
    more = augment_split(cut, ALL, seed=0)
    with pytest.raises(DataError, match="augmented already"):
        augment_split(more, ALL)
    with pytest.raises(DataError, match="validation part holds augmented"):
        augment_split(replace(cut, parts={**cut.parts, "validation": more.parts["train"].tail(3)}), ALL)
    with pytest.raises(DataError, match="both the train and the test part"):
        augment_split(replace(cut, parts={**cut.parts, "test": cut.parts["train"].head(3)}), ALL)


def test_the_mark_survives_a_round_trip(mails: list[Email]) -> None:
    """A copy is still a copy after it went through a table."""
    made = augment(mails[:50], ALL, seed=0)
    assert to_mails(to_frame(made)) == made and all(map(is_augmented, to_mails(to_frame(made))))


# ---- sender swap -----------------------------------------------------------------------------------------------------------
def test_swap_stays_in_category_kind_and_domain_type(mails: list[Email]) -> None:
    pool = SenderPool.of(mails)
    wrote = {(m.category, address(m.sender)) for m in mails}
    there = {m.id: m for m in mails}
    for m in augment(mails, only("sender_swap"), seed=0, copies=3):
        old = there[m.id.rpartition("+aug")[0]]
        assert address(m.sender) != address(old.sender) and (m.category, address(m.sender)) in wrote
        assert domain_type(m.sender) == domain_type(old.sender)
        key = (old.category, sender_kind(old), domain_type(old.sender))
        assert address(m.sender) in {a for a, _ in pool.senders[key]}


def test_swap_needs_someone_to_swap_with() -> None:
    alone = Email("1", "s", "b", "ada@example.org", category="work")
    assert augment([alone], only("sender_swap")) == []
    assert augment([alone, replace(alone, id="2", sender="can@example.org", category="personal")], only("sender_swap")) == []
    assert augment([alone, replace(alone, id="2", sender="no-reply@example.org")], only("sender_swap")) == []
    assert augment([alone, replace(alone, id="2", sender="")], only("sender_swap")) == []
    assert len(augment([alone, replace(alone, id="2", sender="can@example.org")], only("sender_swap"))) == 2


# ---- Turkish ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("lower", "upper"), [("ısı", "ISI"), ("iklim", "İKLİM"),
    ("ıspanaklı içli köfte", "ISPANAKLI İÇLİ KÖFTE"), ("şığçöü", "ŞIĞÇÖÜ")])
def test_turkish_casing(lower: str, upper: str) -> None:
    assert to_upper(lower, turkish=True) == upper and to_lower(upper, turkish=True) == lower
    mail = Email("x", lower, lower, language="tr")
    assert in_case(mail, "upper").subject == upper and in_case(in_case(mail, "upper"), "lower").body == lower


def test_casing_follows_the_language() -> None:
    mails = {lang: Email("x", "istanbul is big", "ı" if lang == "und" else "", language=lang) for lang in ("tr", "en", "und", None)}
    titles = {lang: in_case(mail, "title").subject for lang, mail in mails.items()}
    assert titles == {"tr": "İstanbul İs Big", "en": "Istanbul Is Big", "und": "İstanbul İs Big", None: "Istanbul Is Big"}


def test_turkish_without_its_letters() -> None:
    made = in_ascii(Email("x", "Şubat ÇAĞRISI: İzmir'de ığdır üzümü öğün", "kâğıt", language="tr"))
    assert made is not None and (made.subject, made.body) == ("Subat CAGRISI: Izmir'de igdir uzumu ogun", "kagit")
    assert in_ascii(Email("x", "Grüße", "Çok", language="en")) is None and in_ascii(made) is None


# ---- any text --------------------------------------------------------------------------------------------------------------
TEXT = st.text(st.characters(), max_size=120)
MAIL = st.builds(Email, id=st.text(st.characters(), max_size=12),
    subject=TEXT | st.sampled_from(["Re: Re: Trip information", "FW: hk.", "Reminder: {0}", "{", "ACİL"]),
    body=TEXT | st.just(REPLY), sender=TEXT | st.sampled_from(["Ada <ada@example.org>", "a@b@c", "@", "no-reply@x.example"]),
    category=st.sampled_from(["work", "spam", None]), language=st.sampled_from(["en", "tr", "und", None]))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(MAIL, max_size=3), st.integers(0, 2**31))
def test_any_mail_can_be_augmented(found: list[Email], seed: int) -> None:
    """No text makes an operation fail, and a copy differs from its original in what a model reads."""
    before = copy.deepcopy(found)
    pool = SenderPool.of(found)
    for mail in found:
        for step in operations(pool):
            made = step.apply(mail, random_of(seed, mail.id, step.name))
            if made is not None:
                assert (made.sender, made.subject, made.body) != (mail.sender, mail.subject, mail.body) or step.name == "subject_paraphrase"
    for made in augment(found, ALL, seed):
        assert made.headers[MARK] and isinstance(made.subject, str) and isinstance(made.body, str)
    assert found == before


@settings(max_examples=100, deadline=None, derandomize=True)
@given(TEXT, st.sampled_from(sorted(CASES)), st.booleans())
def test_casing_takes_any_text(text: str, case: str, turkish: bool) -> None:
    assert CASES[case](CASES[case](text, turkish), turkish) is not None
