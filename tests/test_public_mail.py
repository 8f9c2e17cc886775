"""The labels joined with the public corpora give the labelled set: proved on local copies of real mail. Nothing of a mail is printed."""

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from email_trm.mail.corpora import BODY_CHARS, JoinReport, build_public_mail, item_id, join_labels, read_labels
from email_trm.mail.guard import Item
from email_trm.mail.message import Email, address
from email_trm.mail.readers import read_items

LABELLED = {"enron": 11_792, "spamassassin": 1_151}
SETS = {"easy-ham-1": "easy_ham", "easy-ham-2": "easy_ham_2", "hard-ham-1": "hard_ham", "spam-1": "spam", "spam-2": "spam_2"}


@pytest.fixture(scope="module")
def truth(shared_data: Path) -> dict[str, dict]:
    """The labelled set by id."""
    with gzip.open(shared_data / "emails.jsonl.gz", "rt", encoding="utf-8") as lines:
        return {r["id"]: r for r in map(json.loads, lines) if r["source"] in LABELLED}


def labels_file(repo: Path) -> Path:
    """The label file the repository ships."""
    return repo / "data" / "labels" / "labels.csv"


def fold(text: str | None) -> str:
    """Text with white space folded."""
    return " ".join((text or "").split())


LINKS = re.compile(r"<?(?:https?://|www\.)\S+|\S+@\S+|\[[^\s\]]+\]|\S*\w\.\w\S*")  # Links whole or reduced, addresses, dotted names


def plain(text: str) -> list[str]:
    """The words of a text in order, without links: `html_to_text` reduces them, the labelled set dropped or kept them whole."""
    return re.findall(r"[^\W\d_]+", LINKS.sub(" ", text.replace("\ufffd", " ")).lower())


def shared_words(one: list[str], two: list[str]) -> float:
    """Share of words two texts have in common, counted."""
    most = max(len(one), len(two))
    return (Counter(one) & Counter(two)).total() / most if most else 1.0


def compare(mails: list[Email], truth: dict[str, dict]) -> dict[str, float]:
    """Share of mails that agree with the labelled set, by field."""
    same: Counter[str] = Counter()
    for mail in mails:
        row = truth[mail.id]
        same["label"] += all(getattr(mail, k) == row[k] for k in ("category", "alt_category", "language", "source"))
        same["message_id"] += mail.message_id == row["message_id"]
        same["sender"] += address(mail.sender) == address(row["sender"])
        same["subject"] += fold(mail.subject) == fold(row["subject"])
        same["time"] += mail.timestamp == row["timestamp"]
        exact = fold(mail.body) == fold(row["body"])
        ours, theirs = ([], []) if exact else (plain(mail.body), plain(row["body"]))
        same["body"] += exact
        same["text"] += ours == theirs
        same["words"] += shared_words(ours, theirs) >= 0.9
        assert len(mail.body) <= BODY_CHARS
    return {key: round(n / len(mails), 4) for key, n in same.items()}


def assert_at_least(found: dict[str, float], bounds: dict[str, float]) -> None:
    """Each share at its bound or above."""
    print(found)
    assert not {k: (found[k], bound) for k, bound in bounds.items() if found[k] < bound}


def test_the_label_file_is_the_one_of_the_labelled_set(repo: Path, shared_data: Path, truth: dict[str, dict]) -> None:
    assert labels_file(repo).read_bytes() == (shared_data / "labels.csv").read_bytes()
    labels = read_labels(labels_file(repo))
    assert len(labels) == 15_471 and {s: sum(v.source == s for v in labels.values()) for s in LABELLED} == LABELLED
    assert all(getattr(labels[i], k) == r[k] for i, r in truth.items() for k in ("category", "alt_category", "language", "source"))


def test_the_label_file_holds_no_mail(repo: Path) -> None:
    lines = labels_file(repo).read_text("ascii").splitlines()
    assert lines[0] == "id,category,alt_category,language,source" and len(lines) == 15_472
    assert all(re.fullmatch(r"[0-9a-f]{16},[a-z]+,[a-z]*,(en|tr),[a-z0-9_-]+", line) for line in lines[1:])


BOUNDS = {"label": 1, "message_id": 1, "sender": 0.998, "subject": 0.995, "time": 0.995, "words": 0.95, "text": 0.85}


def test_spamassassin_joins_whole(repo: Path, shared_data: Path, truth: dict[str, dict]) -> None:
    report = JoinReport()
    mails = list(build_public_mail(labels_file(repo), spamassassin=shared_data / "raw" / "spamassassin.tar.xz", report=report))
    assert (report.found["spamassassin"], report.seen["spamassassin"]) == (1_151, 6_046), str(report)
    assert not report.missing["spamassassin"] and not report.duplicates and not report.refused
    assert report.elsewhere == 15_471 - 1_151 and len({m.id for m in mails}) == 1_151
    assert_at_least(compare(mails, truth), BOUNDS)


def test_spamassassin_joins_as_apache_packs_it(repo: Path, shared_data: Path, truth: dict[str, dict], tmp_path: Path) -> None:
    """The labelled files, a tar.bz2 for each set, without suffix, beside a `cmds` file that is no mail. The MD5 of its bytes names each."""
    out = {n: tarfile.open(tmp_path / f"20030228_{n}.tar.bz2", "w:bz2", compresslevel=1) for n in SETS.values()}  # noqa: SIM115
    wanted, sound = {r["message_id"] for r in truth.values()}, 0
    with tarfile.open(shared_data / "raw" / "spamassassin.tar.xz") as packed:
        for member in packed:
            place = "/".join(Path(member.name).parts[-2:])
            if place in wanted:
                raw, theirs = packed.extractfile(member).read(), SETS[place.split("/")[0]]
                info = tarfile.TarInfo(f"{theirs}/{place.split('/')[1].removesuffix('.txt')}")
                info.size = len(raw)
                out[theirs].addfile(info, io.BytesIO(raw))
                sound += hashlib.md5(raw, usedforsecurity=False).hexdigest() == place.split(".")[1]
    for name, archive in out.items():
        archive.addfile(tarfile.TarInfo(f"{name}/cmds"), io.BytesIO())
        archive.close()
    ids = [item_id(item) for path in sorted(tmp_path.iterdir()) for item in read_items(path)]
    assert len(ids) == sound == 1_151 and set(ids) == {i for i, r in truth.items() if r["source"] == "spamassassin"}


def test_enron_joins_from_its_maildir(repo: Path, shared_data: Path, truth: dict[str, dict], tmp_path: Path) -> None:
    """Three mailboxes, packed as CMU packs them, with every 50th mail lying in a second folder as well."""
    path, ids, twice = tmp_path / "enron_mail_20150507.tar.gz", Counter(), 0
    with tarfile.open(path, "w:gz", compresslevel=1) as out:
        for n, item in enumerate(read_items(shared_data / "raw" / "enron-mbox-3-users.tar.xz")):
            if item.kind != "message":
                continue
            user, folder = item.known["folder"].split("/", 1)
            for place in [folder, *["second"] * (n % 50 == 0)]:
                info = tarfile.TarInfo(f"maildir/{user}/{place}/{n}.")
                info.size = len(item.data)
                out.addfile(info, io.BytesIO(item.data))
                ids[item_id(item)] += 1
    here = [i for i in ids if i in truth]
    twice = sum(ids[i] - 1 for i in here)
    report = JoinReport()
    mails = list(build_public_mail(labels_file(repo), enron=path, report=report))
    assert len(here) >= 184 and report.found["enron"] == len(mails) == len(here), str(report)
    assert report.duplicates["enron"] == twice and report.missing["enron"] == 11_792 - len(here) and report.seen["enron"] == ids.total()
    assert all("/" in (m.folder or "") for m in mails)
    assert_at_least(
        compare(mails, truth), {"label": 1, "message_id": 1, "sender": 1, "subject": 0.99, "time": 1, "words": 0.98, "text": 0.9}
    )


def enron_rows(table: pa.Table) -> Iterator[dict]:
    """Rows of the table of unique Enron messages, as records of `Email`."""
    for r in table.to_pylist():
        yield {
            "message_id": r["mid"],
            "timestamp": datetime.fromtimestamp(r["ts"], UTC).isoformat(),
            "sender": r["frm"],
            "recipient": ", ".join(r["to"]),
            "subject": r["subject"],
            "body": r["body"],
        }


def test_enron_joins_from_the_table_of_unique_messages(repo: Path, shared_data: Path, truth: dict[str, dict]) -> None:
    report, labels = JoinReport(), read_labels(labels_file(repo))
    path = shared_data / "enron-actions" / "messages.parquet"
    rows = {r["message_id"]: r for r in truth.values() if r["source"] == "enron"}
    table = pq.read_table(path, columns=["mid", "ts", "frm", "to", "subject", "body"], filters=pc.field("mid").isin(list(rows)))
    mails = list(join_labels((Item("record", row) for row in enron_rows(table)), labels, "enron", report))
    assert report.found["enron"] >= 11_673 and not report.refused, str(report)
    assert_at_least(
        compare(mails, truth), {"label": 1, "message_id": 1, "sender": 0.999, "subject": 0.999, "time": 1, "words": 0.999, "text": 0.98}
    )

    missing = [rows[i] for i in rows.keys() - {m.message_id for m in mails}]
    times = [int(datetime.fromisoformat(r["timestamp"]).timestamp()) for r in missing]
    kept = defaultdict(set)
    for row in enron_rows(pq.read_table(path, columns=["mid", "ts", "frm", "to", "subject", "body"], filters=pc.field("ts").isin(times))):
        kept[fold(row["subject"]).lower(), row["timestamp"]].add(fold(row["body"])[:300])
    copies = [kept.get((fold(r["subject"]).lower(), r["timestamp"]), set()) for r in missing]
    same = sum(fold(r["body"])[:300] in bodies for r, bodies in zip(missing, copies, strict=True))
    print(
        len(missing), "missing,", sum(map(bool, copies)), "of them there under another Message-ID,", same, "with the same start of the body"
    )
    assert len(missing) <= 119 and sum(map(bool, copies)) >= len(missing) - 5 and same >= len(missing) - 9


def test_the_rest_has_no_download(repo: Path) -> None:
    labels = read_labels(labels_file(repo))
    rest = Counter(label.source for label in labels.values() if label.source not in LABELLED)
    assert rest.total() == 2_528 and {"phishing_pot", "turkish_spam_v01", "spambotu", "markup"} <= rest.keys()
