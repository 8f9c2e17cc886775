"""Any mailbox in: every format by its own little mailbox, in constant memory, and hostile sources that must not surprise."""
import bz2
import gzip
import io
import json
import lzma
import mailbox
import os
import re
import tarfile
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from email_trm.core.errors import ConfigError, RecordError, SourceError
from email_trm.mail import readers
from email_trm.mail.guard import Item, parse_item
from email_trm.mail.message import MAX_MESSAGE_BYTES, address, stable_id
from email_trm.mail.readers import (
    FORMATS,
    ReadReport,
    blob_of,
    detect_format,
    fingerprint_source,
    json_items,
    mbox_items,
    read_emails,
    read_items,
    split_mbox,
)
from email_trm.mail.sample import MAILBOX_KINDS, sample_mailbox, write_mailbox

STAMP = b"From ada@example.org Mon Nov 23 10:00:00 2026\n"


def letter(subject: str, body: str = "noon?", extra: str = "") -> bytes:
    """A small synthetic message."""
    return f"From: Ada <ada@example.org>\nTo: bob@example.org\nSubject: {subject}\n{extra}\n{body}\n".encode()


def mbox(*messages: bytes) -> bytes:
    """An mbox in the mboxrd dialect."""
    return b"".join(STAMP + re.sub(rb"(?m)^(>*From )", rb">\1", m) + b"\n" for m in messages)


def write(path: Path, raw: bytes | str) -> Path:
    """A file with the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return path


def subjects(source: Path | str, **options: Any) -> list[str]:
    """Subjects of a source, in order."""
    return [m.subject for m in read_emails(source, isolate=False, **options)]


@contextmanager
def peak_below(limit: int) -> Iterator[None]:
    """Fails if more than `limit` bytes are held at once inside."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def refusals(source: Path | str) -> Counter[str]:
    """Causes of refused items."""
    return Counter(str(i.data) for i in read_items(source) if i.kind == "refused")


# mbox

LINE = st.sampled_from([b"", b"text", b"From here on", b"From a@x.example Mon Nov 23 10:00:00 2026", b">From b", b">>From c", b" From d",
    b"From: x", b"\xff\x00", b"From ", b"Subject: again"])
MESSAGE = st.lists(LINE, max_size=8).map(lambda lines: b"Subject: s\n\n" + b"".join(line + b"\n" for line in lines))


@settings(max_examples=150, deadline=None)
@given(st.lists(MESSAGE, min_size=1, max_size=6), st.integers(1, 200), st.booleans())
def test_mboxrd_round_trip(messages: list[bytes], chunk: int, crlf: bool) -> None:
    """Whatever is in the bodies, the same bytes come back, for any size of chunk and both line ends."""
    end = b"\r\n" if crlf else b"\n"
    raw = mbox(*messages).replace(b"\n", end)
    expected = [m.replace(b"\n", end) for m in messages]
    assert [i.data for i in mbox_items(io.BytesIO(raw))] == expected
    assert list(split_mbox(io.BytesIO(raw), chunk=chunk)) == list(split_mbox(io.BytesIO(raw)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(MESSAGE, min_size=1, max_size=5))
def test_mbox_agrees_with_the_standard_library(tmp_path: Path, messages: list[bytes]) -> None:
    """Written and read by `mailbox.mbox`, which quotes From_ lines but does not unquote them."""
    path = tmp_path / "box"
    path.unlink(missing_ok=True)
    box = mailbox.mbox(path)
    for message in messages:
        box.add(message)
    box.flush()
    theirs = [re.sub(rb"(?m)^>(>*From )", rb"\1", box.get_bytes(k)) for k in box.keys()]  # noqa: SIM118
    box.close()
    assert [i.data for i in read_items(path)] == theirs


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400) | st.lists(LINE, max_size=20).map(b"\n".join), st.integers(1, 64), st.integers(20, 200))
def test_split_mbox_is_total(raw: bytes, chunk: int, limit: int) -> None:
    """Any bytes, any limit: pieces within the limit or None, whatever the chunks."""
    pieces = list(split_mbox(io.BytesIO(raw), limit, chunk))
    assert all(p is None or len(p) <= limit + 2 for p in pieces)
    assert pieces == list(split_mbox(io.BytesIO(raw), limit, 1 << 20))


@pytest.mark.parametrize("name", ["Inbox", "All mail Including Spam and Trash.mbox", "x.txt", "noise.bin"])
def test_mbox_is_known_by_content(tmp_path: Path, name: str) -> None:
    raw = b"\xef\xbb\xbf\n" + mbox(letter("one", "A\nFrom here on\n\nFrom text to text"), letter("two"))[:-2]
    assert detect_format(write(tmp_path / name, raw)) == "mbox"
    assert subjects(tmp_path / name) == ["one", "two"]


def test_a_message_beyond_the_limit_is_one_refusal(tmp_path: Path) -> None:
    """A sparse mbox of 300 MB: two small messages around a hole. Its bytes are passed over, not kept."""
    path = write(tmp_path / "big", mbox(letter("one")) + STAMP + b"Subject: hole\n\n")
    with path.open("r+b") as file:
        file.seek(300_000_000)
        file.write(b"\n\n" + mbox(letter("three")))
    with peak_below(5 * MAX_MESSAGE_BYTES):
        items = list(read_items(path))
    assert [i.kind for i in items] == ["message", "refused", "message"] and "25,000,000" in items[1].data


class Endless(io.RawIOBase):
    """A file of `n` equal pieces that exist only when they are read."""

    def __init__(self, piece: bytes, n: int) -> None:
        self.pieces: Iterator[bytes] = (piece for _ in range(n))
        self.rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        parts = [self.rest]
        while sum(map(len, parts)) < len(buffer) and (piece := next(self.pieces, b"")):
            parts.append(piece)
        data = b"".join(parts)
        n = min(len(data), len(buffer))
        buffer[:n], self.rest = data[:n], data[n:]
        return n


def peak_of(items: Iterator[Item]) -> tuple[int, int]:
    """(number of items, peak bytes) of a stream that nobody keeps."""
    tracemalloc.start()
    n = sum(1 for _ in items)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return n, peak


@pytest.mark.parametrize("read, piece", [
    (mbox_items, mbox(letter("one", "x" * 1_000))),
    (readers.jsonl_items, json.dumps({"id": "a", "subject": "s", "body": "x" * 1_000}).encode() + b"\n"),
    (json_items, json.dumps({"id": "a", "subject": "s", "body": "x" * 1_000}, indent=1).encode()),
    (lambda f: readers.csv_items(io.TextIOWrapper(f, newline="")), b"a,subject\n" + b"x" * 1_000 + b",b\n"),
], ids=["mbox", "jsonl", "json", "csv"])
def test_memory_is_constant(read: Callable[[Any], Iterator[Item]], piece: bytes) -> None:
    """Five times the mail, the same peak."""
    few, many = (peak_of(read(io.BufferedReader(Endless(piece, n), 1 << 16))) for n in (800, 4_000))
    assert many[0] >= 5 * few[0] - 5 and many[1] < 1.2 * few[1] + 200_000 and many[1] < 8_000_000


# Layouts

def test_maildir(tmp_path: Path) -> None:
    top = tmp_path / "Maildir"
    for name in ["cur/1700000001.M1.host:2,S", "new/1700000002.M2.host", "cur/1700000003.M3.host;2,RF", ".Sent/cur/1700000004.M4.host!2,S",
        ".INBOX.Work/cur/1700000005.M5.host:2,PS", ".&AMc-&APY-p Kutusu/cur/1700000006.M6.host:2,ST", ".Junk/new/1700000007.M7.host"]:
        write(top / name, letter(name[-15:]))
    write(top / "tmp/1700000008.M8.host", letter("unfinished"))
    write(top / "dovecot.index.log", b"\x01\x02")
    assert detect_format(top) == "maildir"
    found = {m.folder: (m.flags, m.hint) for m in read_emails(top, isolate=False) if m.folder != "inbox"}
    assert found == {"sent": (["seen"], None), "work": (["seen", "forwarded"], None), "trash": (["seen", "trashed"], None),
        "spam": (["unread"], "spam")}
    inbox = [m.flags for m in read_emails(top, isolate=False) if m.folder == "inbox"]
    assert sorted(map(tuple, inbox)) == [("seen",), ("unread",), ("unread", "replied", "flagged")]


def test_enron(tmp_path: Path) -> None:
    for name in ["maildir/allen-p/inbox/1.", "maildir/allen-p/inbox/2.", "maildir/bass-e/projects/gas/10."]:
        write(tmp_path / name, letter(name))
    write(tmp_path / "boxes/enron.allen-p._sent_mail", mbox(letter("x")))
    assert detect_format(tmp_path / "maildir") == detect_format(tmp_path / "maildir/allen-p") == "enron-maildir"
    assert detect_format(tmp_path / "boxes") == "enron-mbox"
    assert [m.folder for m in read_emails(tmp_path / "maildir", isolate=False)] == ["allen-p/inbox"] * 2 + ["bass-e/projects.gas"]
    mail = next(iter(read_emails(tmp_path / "boxes", isolate=False)))
    assert (mail.folder, mail.source) == ("allen-p/sent", "enron")


@pytest.mark.parametrize("folder, name", [("easy_ham", "easy-ham-1"), ("spam_2", "spam-2"), ("hard-ham-1", "hard-ham-1")])
def test_spamassassin(tmp_path: Path, folder: str, name: str) -> None:
    file = "00001.0123456789abcdef0123456789abcdef"
    write(tmp_path / folder / file, STAMP + letter("x", "One\n\nFrom two Mon Nov 23 10:00:00 2026\nSubject: three"))
    write(tmp_path / folder / "cmds", "mv a b")
    (mail,) = read_emails(tmp_path, isolate=False)
    assert detect_format(tmp_path) == "spamassassin" and mail.source == "spamassassin"
    assert (mail.message_id, mail.id) == (f"{name}/{file}.txt", stable_id(f"{name}/{file}.txt"))
    assert mail.hint == ("spam" if "spam" in name else None) and mail.category is None


def test_takeout(tmp_path: Path) -> None:
    raw = mbox(letter("x", extra="X-Gmail-Labels: Inbox,Opened,Category Promotions\n"))
    write(tmp_path / "t/Takeout/Mail/All mail.mbox", raw)
    write(tmp_path / "t/Takeout/Chrome/History.json", '[{"subject": "no mail"}]')
    write(tmp_path / "t/Takeout/archive_browser.html", "<html>")
    with zipfile.ZipFile(tmp_path / "takeout.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((tmp_path / "t").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path / "t"))
    for source in [tmp_path / "t", tmp_path / "t/Takeout/Mail", tmp_path / "t/Takeout/Mail/All mail.mbox", tmp_path / "takeout.zip"]:
        assert detect_format(source) == "takeout"
        (mail,) = read_emails(source, isolate=False)
        assert mail.folder == "inbox"


def test_eml_and_mixed_folders(tmp_path: Path) -> None:
    write(tmp_path / "a.eml", letter("a"))
    write(tmp_path / "Inbox/12345", letter("no suffix"))
    write(tmp_path / "Inbox/.hidden", letter("hidden"))
    write(tmp_path / "Local/Archive", mbox(letter("b"), letter("c")))
    write(tmp_path / "notes.txt", "Remember: the milk")
    write(tmp_path / "z.jsonl", '{"subject": "d"}\nnonsense\n')
    os.symlink(tmp_path / "a.eml", tmp_path / "link.eml")
    os.symlink(tmp_path, tmp_path / "loop")
    report = ReadReport()
    assert subjects(tmp_path, report=report) == ["no suffix", "b", "c", "a", "d"]
    assert (report.ignored, sum(report.skipped.values())) == (1, 1) and report.done_bytes == report.total_bytes > 0
    assert detect_format(tmp_path) == "mixed"
    assert subjects(tmp_path / "link.eml") == ["a"]  # named by the user, so followed


# Records

def test_outlook_csv(tmp_path: Path) -> None:
    row = '"Fatura","Ekte,\r\n""iki"" satır","Ayşe","ayse@example.org","bob@example.org;eve@example.org","","İş; Acil"\r\n'
    turkish = '"Konu","Gövde","Kimden: (Ad)","Kimden: (Adres)","Kime: (Adres)","Bilgi: (Adres)","Kategoriler"\r\n' + row
    english = '"Subject","Body","From: (Name)","From: (Address)","To: (Address)","CC: (Address)","Categories"\r\n' + row
    for name, raw in {"a.csv": turkish.encode("cp1254"), "b.csv": english.encode("utf-8-sig"), "c.csv": turkish.encode("utf-16")}.items():
        (mail,) = read_emails(write(tmp_path / name, raw), isolate=False)
        assert (mail.subject, mail.sender, mail.recipient) == ("Fatura", "Ayşe <ayse@example.org>", "bob@example.org,eve@example.org")
        assert mail.labels == ["İş", "Acil"] and "satır" in mail.body and detect_format(tmp_path / name) == "csv"


@pytest.mark.parametrize("delimiter, name", [(",", "a.csv"), (";", "a.csv"), ("\t", "a.csv"), ("\t", "a.tsv")])
def test_tables(tmp_path: Path, delimiter: str, name: str) -> None:
    rows = [["Title", "Text"], ["Hello", "x"], ["too", "many", "cells"], ["", ""], ["Again", "y"]]
    write(tmp_path / name, "\n".join(delimiter.join(r) for r in rows))
    report = ReadReport()
    assert subjects(tmp_path / name, field_map={"subject": "Title", "body": "Text"}, report=report) == ["Hello", "Again"]
    assert sum(report.skipped.values()) == 1


def test_parquet(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": [f"m{i}" for i in range(2_000)], "subject": "s", "body": None, "labels": [["a", "b"]] * 2_000, "x": 0.5})
    frame.to_parquet(tmp_path / "x.parquet")
    mails = list(read_emails(tmp_path / "x.parquet"))
    assert [m.id for m in mails] == list(frame["id"]) and mails[-1].labels == ["a", "b"] and mails[0].body == ""
    assert subjects(tmp_path / "x.parquet", field_map={"subject": "id"})[:2] == ["m0", "m1"]
    write(tmp_path / "cut.parquet", (tmp_path / "x.parquet").read_bytes()[:-20])
    with pytest.raises(SourceError, match="Parquet"):
        list(read_items(tmp_path / "cut.parquet"))


@settings(max_examples=150, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "subject", "emails", "data", "x"]), inner,
    max_size=3), max_leaves=10), st.sampled_from([None, 1]))
def test_json_is_read_as_the_decoder_would(value: Any, indent: int | None) -> None:
    """Streamed or whole: the same records."""
    whole = value
    if isinstance(value, dict) and "subject" not in value:
        whole = [r for k in value if k in readers._containers and isinstance(value[k], list) for r in value[k]]
        whole = whole if any(k in readers._containers and isinstance(value[k], list) for k in value) else value
    elif isinstance(value, dict):
        return
    records = whole if isinstance(whole, list) else [whole]
    items = list(json_items(io.BytesIO(json.dumps(value, indent=indent).encode())))
    assert [i.data if i.kind == "record" else None for i in items] == [r if isinstance(r, dict) else None for r in records]


# Packing

@pytest.mark.parametrize("pack, suffix", [(gzip.compress, ".gz"), (bz2.compress, ".bz2"), (lzma.compress, ".xz")])
def test_packed_files(tmp_path: Path, pack: Callable[[bytes], bytes], suffix: str) -> None:
    raw = mbox(letter("one"), letter("two"))
    report = ReadReport()
    assert subjects(write(tmp_path / f"Inbox.mbox{suffix}", pack(raw)), report=report) == ["one", "two"]
    assert report.done_bytes == report.total_bytes == (tmp_path / f"Inbox.mbox{suffix}").stat().st_size
    assert next(read_items(tmp_path / f"Inbox.mbox{suffix}")).known["folder"] == "inbox"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ["maildir/allen-p/inbox/1.", "../../spam_2/00001.0123456789abcdef0123456789abcdef", "/etc/Inbox\n\x1b[31m.eml"]:
            info = tarfile.TarInfo(name)
            info.size = len(letter(name))
            archive.addfile(info, io.BytesIO(letter(name)))
    write(tmp_path / f"a.tar{suffix}", pack(buffer.getvalue()))
    before = sorted(tmp_path.rglob("*"))
    assert [m.source for m in read_emails(tmp_path / f"a.tar{suffix}", isolate=False)] == ["enron", "spamassassin", None]
    assert sorted(tmp_path.rglob("*")) == before


def test_zip(tmp_path: Path) -> None:
    """Members of every sort: hostile names, packed, nested, damaged. Each is read or counted."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, raw in {"../../evil.eml": letter("a"), "/abs/c:\\x\n.eml": letter("b"),
            "m.jsonl.gz": gzip.compress(b'{"subject": "c"}\n'),
            "inner.zip": b"PK\x03\x04" + bytes(100), "__MACOSX/._x.eml": letter("no"), "bad.eml": letter("UNIQUE" * 10)}.items():
            archive.writestr(name, raw)
    raw = (tmp_path / "a.zip").read_bytes()
    write(tmp_path / "a.zip", raw.replace(b"UNIQUEUNIQUE", b"UNIQUEuNIQUE", 1))
    report = ReadReport()
    assert sorted(subjects(tmp_path / "a.zip", report=report)) == ["a", "b", "c"]
    assert report.skipped == {"unreadable file: an archive inside an archive or a pipe is not opened": 1,
        "unreadable file: is cut off or damaged": 1}
    assert not (tmp_path.parent / "evil.eml").exists() and not (tmp_path.parent.parent / "evil.eml").exists()


@pytest.mark.parametrize("pack, name", [(gzip.compress, "bomb.mbox.gz"), (lzma.compress, "bomb.mbox.xz"), (None, "bomb.zip")])
def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes] | None, name: str) -> None:
    """A few KB that unpack to 20 MB, with the free allowance lowered to 1 MB: stopped early, in little memory."""
    monkeypatch.setattr(readers, "FREE_BYTES", 1_000_000)
    raw = STAMP + b"Subject: x\n\n" + bytes(20_000_000)
    if pack:
        write(tmp_path / name, pack(raw))
    else:
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb.mbox", raw)
            archive.writestr("good.eml", letter("good"))
    del raw
    report, mails = ReadReport(), []
    with peak_below(20_000_000):
        try:
            mails = subjects(tmp_path / name, report=report)
        except SourceError as error:
            assert "unpacks to more than" in error.cause
        else:
            assert mails == ["good"] and any("unpacks to more than" in why for why in report.skipped)


def test_a_file_cut_off(tmp_path: Path) -> None:
    """Mails before the cut are given; alone it is an error at the end, in a folder it is counted."""
    lines = b"".join(json.dumps({"id": str(i), "subject": os.urandom(300).hex()}).encode() + b"\n" for i in range(2_000))
    write(tmp_path / "a/cut.jsonl.gz", gzip.compress(lines)[:-5_000])
    write(tmp_path / "a/ok.eml", letter("ok"))
    found = []
    with pytest.raises(SourceError, match="cut off"):
        for mail in read_emails(tmp_path / "a/cut.jsonl.gz"):
            found.append(mail.id)
    assert 1_900 < len(found) < 2_000
    report = ReadReport()
    mails = list(read_emails(tmp_path / "a", report=report))
    assert mails[-1].subject == "ok" and len(mails) == len(found) + 1
    assert report.skipped["unreadable file: is cut off or damaged"] == 1


# Errors and the rest

@pytest.mark.parametrize("name, raw, words", [
    ("a.msg", readers.OLE + bytes(600), "eml"), ("a.pst", readers.PST + bytes(600), "readpst"), ("a.bin", b"\x00\x01\x02", "format"),
    ("empty.mbox", b"", "format"), ("a.zip", b"PK\x03\x04broken", "damaged"), ("a.json", b"[{]", "JSON"),
    ("x\n\x1b[31m.bin", b"\x00", "format"),
])
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, raw: bytes, words: str) -> None:
    with pytest.raises(SourceError) as caught:
        list(read_emails(write(tmp_path / name, raw)))
    assert words in str(caught.value) and "\x1b" not in str(caught.value) and "\n" not in caught.value.cause and caught.value.remedy


def test_missing_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        list(read_emails(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="did you mean 'maildir'"):
        read_items(tmp_path, format="mail-dir")
    with pytest.raises(SourceError):
        fingerprint_source(tmp_path / "missing")


def test_a_locked_file_in_a_folder_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not bind root, so the refusal of the system is played."""
    write(tmp_path / "a.eml", letter("a"))
    write(tmp_path / "b.eml", letter("b"))
    real = io.FileIO

    def locked(path: str) -> io.FileIO:
        if path.endswith("b.eml"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(readers.io, "FileIO", locked)
    assert refusals(tmp_path) == {"unreadable file: cannot be read: Permission denied": 1}
    with pytest.raises(SourceError, match="Permission denied"):
        list(read_items(tmp_path / "b.eml"))


def test_imap_goes_to_its_own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is asked for a password before anything is connected; tests/test_imap.py reads from a real one."""
    monkeypatch.delenv("EMAIL_TRM_IMAP_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match="EMAIL_TRM_IMAP_PASSWORD"):
        subjects("IMAPS://ada@nobody.example/INBOX")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE])
def test_tar_headers_that_lie(tmp_path: Path, kind: bytes) -> None:
    """A name of 100 GB, a sparse file of 8 GB: refused before anything is read."""
    info = tarfile.TarInfo("Inbox")
    info.type, info.size = kind, 0 if kind == tarfile.GNUTYPE_SPARSE else 100_000_000_000
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if kind == tarfile.GNUTYPE_SPARSE:
        head[483:495] = b"77777777777\x00"
        head[148:156] = b"%06o\0 " % (sum(head[:148]) + sum(head[156:512]) + 256)
    write(tmp_path / "a.tar", bytes(head) + bytes(2_000))
    with peak_below(5_000_000):
        causes = [str(i.data) for i in _until_error(read_items(tmp_path / "a.tar"))]
    assert any("limit" in c or "sparse" in c for c in causes)


def _until_error(items: Iterator[Item]) -> Iterator[Item]:
    """The items, and the error that ended them as one more."""
    try:
        yield from items
    except SourceError as error:
        yield Item("refused", error.cause)


def test_format_overrides_detection(tmp_path: Path) -> None:
    path = write(tmp_path / "a.eml", STAMP + letter("one") + b"\n" + STAMP + letter("two"))
    assert subjects(path) == ["one"] and subjects(path, format="mbox") == ["one", "two"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_standard_input(monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]) -> None:
    for raw, expected in [(mbox(letter("a"), letter("b")), ["a", "b"]), (b'{"subject": "c"}\nbad\n', ["c"]),
            (b'bad\n{"subject": "d"}', ["d"])]:
        monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": io.BytesIO(pack(raw))}))
        assert subjects("-") == expected


def test_order_and_fingerprint(tmp_path: Path) -> None:
    for i in range(20):
        write(tmp_path / f"{i % 3}/{i * 7 % 20}.eml", letter(str(i)))
    assert subjects(tmp_path) == subjects(tmp_path) and len(subjects(tmp_path)) == 20
    one = fingerprint_source(tmp_path)
    assert one == fingerprint_source(tmp_path) and re.fullmatch("[0-9a-f]{64}", one)
    stat = (tmp_path / "0/0.eml").stat()
    write(tmp_path / "0/0.eml", letter("X")[:stat.st_size])
    os.utime(tmp_path / "0/0.eml", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint_source(tmp_path) != one


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.binary(max_size=300),
    st.sampled_from(["a", "a.csv", "a.eml", "a.json", "cur/1.a:2,S", "enron.a.b"]))
def test_no_reader_surprises(name: str, raw: bytes, path: str) -> None:
    """Any bytes given to any reader: items, or a typed error that `_file_items` knows how to count."""
    blob = blob_of(raw, *path.split("/"))
    readers.format_of(blob)
    try:
        for item in FORMATS[name].read(blob, None):
            try:
                parse_item(item)
            except RecordError:
                continue
    except readers._failures:
        return


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([b"", b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\x00", b"PK\x03\x04", b"PAR1", b"From a\n", b"[{", b'{"a":', readers.OLE]),
    st.binary(max_size=600))
def test_no_file_surprises(tmp_path: Path, magic: bytes, raw: bytes) -> None:
    """Any bytes on disk: items or a `SourceError`."""
    path = write(tmp_path / "file", magic + raw)
    try:
        assert all(isinstance(i, Item) for i in read_items(path))
    except SourceError as error:
        assert error.remedy


@pytest.mark.parametrize("kind", MAILBOX_KINDS[1:])
def test_the_sample_as_a_mailbox_is_read_as_it_was(kind: str, tmp_path: Path) -> None:
    """Written as mail programs keep it, every synthetic mail comes back: place, words, writer and time."""
    mails = sample_mailbox(60)
    assert write_mailbox(tmp_path / f"box.{kind}", mails, kind) == len(mails)
    found = {m.message_id: m for m in read_emails(tmp_path / f"box.{kind}", isolate=False)}
    assert found.keys() == {m.message_id for m in mails}
    for mail in mails:
        read = found[mail.message_id]
        assert (read.folder, read.subject.split()) == (mail.folder, mail.subject.split())
        now, then = ([w for w in m.body.split() if "." not in w] for m in (read, mail))  # Links are cut to their domain
        assert now == then and len(then) > 3
        assert (address(read.sender), read.in_reply_to) == (address(mail.sender), mail.in_reply_to)
        assert datetime.fromisoformat(str(read.timestamp)) == datetime.fromisoformat(str(mail.timestamp))
