"""Whatever is thrown at the mail reader becomes an `Email` or a `RecordError`: never another exception, never a hang."""
import tarfile
import time
from io import BytesIO
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from email_trm.core.errors import RecordError, SourceError
from email_trm.mail.guard import parse_item
from email_trm.mail.message import Email, email_from_bytes, email_from_dict, email_to_dict
from email_trm.mail.readers import json_items, jsonl_items
from email_trm.mail.text import clean_text, fold_case, html_to_text

HEADER = st.sampled_from([b"From: a@x.org", b"Subject: =?utf-8?B?////?=", b"Content-Type: multipart/mixed; boundary=b", b"Date: 99 Foo",
    b"Content-Type: text/html; charset=\xff", b"Content-Transfer-Encoding: base64", b"MIME-Version: 1.0", b"Content-Type: message/rfc822"])
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "subject", "body", "sender", "headers", "x"]), inner,
    max_size=4), max_leaves=8)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(HEADER, max_size=5), st.binary(max_size=300))
def test_bytes_become_a_mail_or_a_record_error(headers: list[bytes], rest: bytes) -> None:
    try:
        mail = email_from_bytes(b"\n".join([*headers, b"", b"--b\n\n" + rest]))
    except RecordError:
        return
    assert isinstance(mail, Email) and mail.id


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_records_become_a_mail_or_a_record_error(record: object) -> None:
    try:
        mail = email_from_dict(record)  # type: ignore[arg-type]
    except RecordError:
        return
    assert email_from_dict(email_to_dict(mail)) == mail


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_json_bytes_never_surprise(raw: bytes) -> None:
    for read in (jsonl_items, json_items):
        try:
            for item in read(BytesIO(raw)):
                try:
                    parse_item(item)
                except RecordError:
                    continue
        except (RecordError, SourceError):
            continue


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_text_functions_are_total(text: str) -> None:
    assert clean_text(clean_text(text)) == clean_text(text)
    assert isinstance(html_to_text(text), str)
    assert fold_case(fold_case(text)) == fold_case(text)


def test_bombs_are_refused_quickly() -> None:
    bombs = {
        "subject of 1 MB": b"Subject: " + b"x" * 1_000_000 + b"\n\nhi",
        "20,000 recipients": b"From: a@x.org\n" + b"To: b@x.org\n" * 20_000 + b"\nhi",
        "50,000 parts": b"From: a@x.org\nContent-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * 50_000,
    }
    for name, raw in bombs.items():
        began = time.perf_counter()
        try:
            email_from_bytes(raw)
        except RecordError as error:
            assert "limit" in error.cause, name
        else:
            raise AssertionError(f"{name} was read")
        assert time.perf_counter() - began < 2, name


def test_torture_messages(shared_data: Path) -> None:
    """159 hostile and odd messages from other parsers' test suites: each is read or refused."""
    read = refused = 0
    with tarfile.open(shared_data / "torture.tar.xz") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            try:
                email_from_bytes(file.read())
                read += 1
            except RecordError:
                refused += 1
    assert read + refused >= 159 and read > 100
