"""Fuzz the parser for a long time: `make evidence-fuzz` runs 100,000 cases and commits the counts. A short run is part of `make test`.

Each case is a message made of pieces that parsers trip over: real headers with hostile values, boundaries that lie, transfer encodings
that do not match, charsets that do not exist, bytes cut anywhere. It must become an `Email` or a `RecordError`, and quickly.

python tests/fuzz.py CASES OUTPUT.json [SEED]
"""
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from email_trm.core.errors import RecordError
from email_trm.core.runs import machine, utc_now, versions, write_json
from email_trm.mail.message import Email, email_from_bytes, email_from_dict, email_to_dict
from email_trm.mail.privacy import mask
from email_trm.mail.zones import split_zones

JUNK = st.binary(max_size=40) | st.sampled_from([
    b"=?utf-8?B?////?=", b"=?x?q?=FF?=", b"\x00", b"\xff\xfe", b'"', b"(((", b"<>", b"\r", b"\xc4\xb1", b"=?utf-8?Q?=C4?= =?utf-8?Q?=B1?=",
    b"a@b, c@d", b";;;=", b"--b", b"utf-7", b"=" * 30, "ığüşöç".encode("cp1254"),
])
NAMES = st.sampled_from([
    b"From", b"To", b"Cc", b"Subject", b"Date", b"Message-ID", b"In-Reply-To", b"References", b"Reply-To", b"Received",
    b"List-Id", b"X-Gmail-Labels", b"X-GM-THRID", b"Content-Type", b"Content-Disposition", b"Content-Transfer-Encoding", b"MIME-Version",
    b"", b" ", b"x y",
])
TYPES = st.sampled_from([
    b"text/plain", b"text/html; charset=utf-8", b"text/plain; charset=iso-8859-9", b"text/plain; charset=utf-16",
    b"text/html; charset=zip", b"multipart/mixed; boundary=b", b'multipart/alternative; boundary="b"', b"multipart/mixed",
    b"multipart/mixed; boundary=",
    b"message/rfc822", b"application/octet-stream; name=a.bin", b"text/plain; charset*=utf-8''x", b"text", b"/", b"message/partial",
    b"image/png",
])
CODINGS = st.sampled_from([b"base64", b"quoted-printable", b"8bit", b"7bit", b"x-uuencode", b"nonsense", b""])
TEXT = JUNK | st.sampled_from([
    b"hello", b"<p>hi <b>there</b></p>", b"<div style='display:none'>x</div>", b"<!--", b"<a href=http://a.example/x?y>z</a>", b"aGVsbG8=",
    b"=C4=B1=", b"> quoted", b"-- ", b"On Monday, A wrote:", b"begin 644 x", b"From ", b"Kimden: x", b"4111 1111 1111 1111", b"+AGE-",
    b"<" * 50, b"\xff" * 20,
])
NEWLINE = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"])


@st.composite
def parts(draw: st.DrawFn, depth: int = 0) -> bytes:
    """Headers, an empty line, a body; a body may be made of parts."""
    end = draw(NEWLINE)
    head = [n + b": " + b"".join(v) for n, v in draw(st.lists(st.tuples(NAMES, st.lists(JUNK, max_size=3)), max_size=4))]
    if draw(st.booleans()):
        head.append(b"Content-Type: " + draw(TYPES))
    if draw(st.booleans()):
        head.append(b"Content-Transfer-Encoding: " + draw(CODINGS))
    body = end.join(draw(st.lists(TEXT, max_size=5)))
    if depth < 3 and draw(st.booleans()):
        inner = [b"--b" + end + part for part in draw(st.lists(parts(depth=depth + 1), min_size=1, max_size=3))]
        body = end.join([body, *inner]) + (end + b"--b--" if draw(st.booleans()) else b"")
    return end.join([*head, b"", body])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message, perhaps cut short or with bytes changed."""
    raw = draw(parts())
    if raw and draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + draw(st.binary(max_size=3)) + (raw[at + 1:] if draw(st.booleans()) else b"")
    return raw


def check(raw: bytes) -> str:
    """Parse one message and what follows from it. The outcome: "read", or the cause of the refusal."""
    try:
        mail = email_from_bytes(raw)
    except RecordError as error:
        return error.cause
    assert isinstance(mail, Email) and mail.id
    assert email_from_dict(email_to_dict(mail)) == mail
    assert "".join(zone.text for zone in split_zones(mail.body)) == mail.body
    assert mask(mask(mail.body)[0])[0] == mask(mail.body)[0]
    return "read"


def fuzz(cases: int, number: int = 0) -> dict[str, Any]:
    """Run `cases` messages. An unhandled error ends the run with the smallest message that shows it."""
    outcomes: Counter[str] = Counter()
    slowest = 0.0

    @seed(number)
    @settings(max_examples=cases, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck))
    @given(messages())
    def run(raw: bytes) -> None:
        nonlocal slowest
        began = time.process_time()
        outcomes[check(raw)] += 1
        slowest = max(slowest, time.process_time() - began)

    run()
    return {"cases": outcomes.total(), "outcomes": dict(outcomes.most_common()), "unhandled": 0, "slowest_seconds": round(slowest, 3)}


if __name__ == "__main__":
    began, number = time.monotonic(), int(sys.argv[3]) if len(sys.argv) > 3 else 0
    found = fuzz(int(sys.argv[1]), number)
    record = {"seed": number, "seconds": round(time.monotonic() - began), "date": utc_now(), "machine": machine(),
        "versions": versions(("hypothesis", "fast-mail-parser", "selectolax"))}
    print(write_json(Path(sys.argv[2]), found | record))
