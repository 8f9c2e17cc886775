"""A dataset one can trust: what was planted is found, what is missing is told with its distance, and no split sees the future."""
import gzip
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from email_trm.core.errors import ConfigError, DataError
from email_trm.data.quality import (
    COMPONENTS,
    conflicts,
    examine,
    joined_groups,
    label_issues,
    leaks,
    near_duplicates,
    quality_report,
    quality_score,
    sender_groups,
    suspicious,
)
from email_trm.data.schema import Taxonomy, broken_records, requirements, to_frame, to_mails, validate
from email_trm.data.splits import groups_of, mailboxes_of, split, times_of
from email_trm.mail.message import Email, email_from_dict
from email_trm.mail.sample import sample_mailbox


@pytest.fixture(scope="module")
def sample() -> pd.DataFrame:
    """The labelled mails of the synthetic mailbox."""
    return to_frame([m for m in sample_mailbox() if m.category])


def planted(frame: pd.DataFrame, every: int = 20) -> pd.DataFrame:
    """The frame, and a copy of every n-th long mail with one word added, other casing, other numbers and another sender."""
    long = frame[frame["body"].str.split().str.len() > 30].iloc[::every]
    copies = long.assign(id=long["id"] + "-copy", sender="copier@copies.example", group=None, thread_id=None, message_id=None,
        body=long["body"].str.upper().str.replace(r"\d+", "77", regex=True) + " Regards")
    return pd.concat([frame, copies], ignore_index=True)


# ---- near-duplicates -------------------------------------------------------------------------------------------------------
def test_planted_copies_are_found_and_nothing_else(sample: pd.DataFrame) -> None:
    before, frame = near_duplicates(sample), planted(sample)
    clusters = dict(zip(frame["id"], near_duplicates(frame), strict=True))
    copies = [i for i in frame["id"] if i.endswith("-copy")]
    assert len(copies) >= 10
    assert all(clusters[i] == clusters[i.removesuffix("-copy")] for i in copies)
    assert len(set(clusters.values())) == before.nunique()


@pytest.mark.parametrize("seed", [1, 2])
def test_clusters_do_not_depend_on_the_order_of_rows(sample: pd.DataFrame, seed: int) -> None:
    frame = planted(sample)
    shuffled = frame.sample(frac=1, random_state=seed)
    assert near_duplicates(shuffled).reindex(frame.index).tolist() == near_duplicates(frame).tolist()
    groups = pd.Series(joined_groups(sender_groups(shuffled), near_duplicates(shuffled)), index=shuffled.index)
    assert groups.reindex(frame.index).tolist() == groups_of(frame, True).tolist()


def test_many_copies_of_one_text_take_no_square_of_time() -> None:
    words = [f"word{chr(97 + k % 26)}{chr(97 + k // 26)}" for k in range(60)]
    bodies = [" ".join([*words, *(chr(97 + int(d)) * 3 for d in f"{k:04}")]) for k in range(3000)]
    frame = to_frame([Email(str(k), "Offer", body) for k, body in enumerate(bodies)])
    start = time.perf_counter()
    assert near_duplicates(frame).nunique() == 1
    assert time.perf_counter() - start < 10


def test_hostile_text_has_clusters_too() -> None:
    texts = ["", " ", "\x00" * 50, "\ud800 lone surrogate " * 20, "a" * 100_000, "word " * 20_000, "😀 " * 500, "ı İ " * 500]
    clusters = near_duplicates(to_frame([Email(str(k), "", t) for k, t in enumerate(texts)]))
    assert clusters.nunique() == len(texts)


# ---- labels ----------------------------------------------------------------------------------------------------------------
def test_conflicting_copies_are_found(sample: pd.DataFrame) -> None:
    frame = planted(sample)
    copies = frame["id"].str.endswith("-copy")
    other = frame["category"].map(lambda c: "work" if c != "work" else "spam")
    frame["category"] = frame["category"].where(~copies, other)
    found = conflicts(frame)
    assert {i for ids in found["ids"] for i in ids} >= set(frame.loc[copies, "id"])
    assert conflicts(sample)["mails"].sum() == 0


def test_wrong_labels_are_found_better_than_by_chance(sample: pd.DataFrame) -> None:
    rng, names = np.random.default_rng(3), sorted(set(sample["category"]))
    wrong = rng.choice(len(sample), len(sample) // 12, replace=False)
    spoilt = sample.copy()
    spoilt.loc[wrong, "category"] = [rng.choice([n for n in names if n != c]) for c in sample.loc[wrong, "category"]]
    found = label_issues(spoilt)
    hit = found["id"].isin(set(sample.loc[wrong, "id"]))
    assert hit.mean() > 4 * len(wrong) / len(sample)
    assert hit.sum() > 0.5 * len(wrong)
    assert set(found.columns) == {"id", "given", "suggested", "score", "admitted"}


def test_labels_of_too_little_mail_are_not_judged(sample: pd.DataFrame) -> None:
    one = sample[sample["category"] == "work"]
    for frame in (one, sample.head(4), sample.assign(group="everybody")):
        with pytest.raises(DataError):
            label_issues(frame)
        findings = examine(frame)
        assert findings.labels is None and findings.why_not
        assert "labels" not in quality_score(frame, findings)["components"]


# ---- leaks and splits ------------------------------------------------------------------------------------------------------
def test_planted_leaks_are_found_and_counted(sample: pd.DataFrame) -> None:
    train, test = sample.iloc[:300], sample.iloc[300:400]
    copies = planted(train)[len(train):]
    same = train.iloc[:3]
    parts = {"train": train, "test": pd.concat([test, copies, same], ignore_index=True)}
    touched = leaks(parts).set_index("kind")["touched"]
    clean = leaks({"train": train, "test": test}).set_index("kind")["touched"]
    assert clean["same id"] == clean["near-duplicate"] == 0
    assert touched["same id"] == 3
    assert touched["near-duplicate"] == len(copies) + 3
    assert touched["same sender"] >= clean["same sender"] + 3


def test_threads_across_parts_are_found() -> None:
    mails = [Email("1", "Budget", sender="ada@a.example", recipient="bob@b.example", message_id="<1@a.example>"),
        Email("2", "Re: Budget", sender="bob@b.example", recipient="ada@a.example", in_reply_to="<1@a.example>"),
        Email("3", "Ynt: BUDGET", sender="ada@a.example", recipient="Bob <bob@b.example>")]
    table = leaks({"train": to_frame(mails[:1]), "test": to_frame(mails[1:])}).set_index("kind")
    assert table.loc["same thread", "touched"] == 2


def test_group_split_keeps_copies_together_when_asked(sample: pd.DataFrame) -> None:
    frame = planted(sample, every=2)
    frame["sender"] = [f"c{k}@copies.example" if s.endswith("copies.example") else s for k, s in enumerate(frame["sender"])]
    frame["cluster"] = near_duplicates(frame)
    for seed in (0, 1):
        table = leaks(split(frame, "group", seed, near_duplicates=frame["cluster"]).parts)
        assert table.query("kind == 'near-duplicate'")["touched"].sum() == 0


@pytest.mark.parametrize("dated", [1.0, 0.6])
def test_time_split_never_trains_on_the_future(sample: pd.DataFrame, dated: float) -> None:
    rng = np.random.default_rng(0)
    frame = sample.assign(timestamp=sample["timestamp"].where(rng.random(len(sample)) < dated, None)).sample(frac=1, random_state=0)
    cut = split(frame, "time", seed=5)
    when = {name: times_of(part).dropna() for name, part in cut.parts.items()}
    assert when["train"].max() < when["validation"].min() <= when["validation"].max() < when["test"].min()
    assert times_of(cut.parts["validation"]).notna().all() and times_of(cut.parts["test"]).notna().all()
    assert cut.record()["undated_in_train"] == frame["timestamp"].isna().sum()
    assert sorted(i for part in cut.parts.values() for i in part["id"]) == sorted(frame["id"])


def test_mailbox_split_holds_out_whole_mailboxes(sample: pd.DataFrame) -> None:
    owners = np.random.default_rng(0).choice(["ada", "bob", "cem", "dan", "eva"], len(sample), p=[0.5, 0.2, 0.1, 0.1, 0.1])
    frame = sample.assign(folder=[f"{o}/inbox" for o in owners])
    for seed in range(4):
        cut = split(frame, "mailbox", seed)
        inside = [set(mailboxes_of(part)) for part in cut.parts.values()]
        assert sum(map(len, inside)) == 5 and all(inside) and "ada" in inside[0]
        assert "missing_categories" in cut.record()


def test_impossible_splits_say_why(sample: pd.DataFrame) -> None:
    for frame, kind in ((sample.assign(timestamp=None), "time"), (sample, "mailbox")):
        with pytest.raises(DataError) as caught:
            split(frame, kind)
        assert caught.value.cause and caught.value.remedy
    with pytest.raises(ConfigError):
        split(sample, "tme")


# ---- gates and report ------------------------------------------------------------------------------------------------------
def test_gates_print_the_distance() -> None:
    mails = [Email(str(k), "Hi", category="work" if k % 3 else "fun") for k in range(30)]
    frame = to_frame([*mails, Email("e"), Email("w", "Hi", category="wrok")])
    gates = requirements(frame, {"train": frame, "test": frame[:0]}, 12, Taxonomy({"work": "", "fun": ""}))
    assert [g.distance for g in gates] == [2, 1, 1, 0, 2]
    lines = "\n".join(map(str, gates))
    assert "MISSED  mails in the smallest category: 10 of 12 mails, 2 short" in lines
    assert gates[-1].by == {"test": ["work", "fun"]}


def test_odd_fields_are_counted_and_kept(tmp_path: Path) -> None:
    file = {"name": "x", "type": "text/plain", "size": 1}
    mails = [Email("1", "s", labels=["a"], flags=["seen"], attachments=[file], timestamp="2026-11-22"), Email("2", "s")]
    frame = to_frame(mails)
    assert broken_records(frame) == (0, {})
    assert broken_records(frame.assign(timestamp="soon", language="klingon"))[0] == 2
    frame.assign(headers=None).to_parquet(tmp_path / "mail.parquet")
    assert to_mails(pd.read_parquet(tmp_path / "mail.parquet")) == mails


def test_report_holds_no_text_no_address_and_no_id(sample: pd.DataFrame) -> None:
    frame = planted(sample)
    findings = examine(frame)
    text = json.dumps(quality_report(frame, findings, {"random": split(frame, "random").parts}))
    assert "@" not in text and not any(i in text for i in frame["id"])
    assert not any(s in text for s in frame["subject"] if len(s) > 12)
    listed = suspicious(frame, findings)
    assert set(listed["id"]) <= set(frame["id"]) and not listed.astype(str).apply(lambda c: c.str.contains("@")).any().any()
    score = quality_score(frame, findings)
    assert set(score["components"]) == set(COMPONENTS) and score["score"] == pytest.approx(np.mean(list(score["components"].values())))


# ---- real mail -------------------------------------------------------------------------------------------------------------
def test_real_mail(shared_data: Path) -> None:
    """Every fifth mail: counts only, since no text may leave."""
    with gzip.open(shared_data / "emails.jsonl.gz", "rt", encoding="utf-8") as lines:
        mails = [email_from_dict(json.loads(line)) for k, line in enumerate(lines) if k % 5 == 0]
    frame, _ = validate(to_frame(mails))
    frame["cluster"] = near_duplicates(frame)
    assert 0 < len(frame) - frame["cluster"].nunique() < 0.1 * len(frame)
    keys = ["kind", "part", "held_out"]
    touched = {kind: leaks(split(frame, kind).parts).set_index(keys)["share"] for kind in ("random", "group", "time")}
    sender = ("same sender", "train", "test")
    assert touched["group"][sender] < 0.2 < touched["random"][sender]
    assert touched["group"][("near-duplicate", "train", "test")] < 0.02
    assert split(frame, "time").record()["missing_categories"]
