"""Hostile messages, made on the spot: each is a few lines that grow into something a careless parser chokes on."""
from collections.abc import Callable

FROM = b"From: a@example.org\n"
WORDS = b"=?utf-8?B?YWFh?= "
MIXED = FROM + b"Content-Type: multipart/mixed; boundary=b\n\n"


def nested(depth: int) -> bytes:
    """Multiparts inside multiparts."""
    return FROM + b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (i, i) for i in range(depth)) + b"\nhi\n"


BOMBS: dict[str, Callable[[], bytes]] = {
    # the set that issue 3 names
    "1 MB header": lambda: b"Subject: " + b"x" * 1_000_000 + b"\n\nhi",
    "1 MB folded header": lambda: b"Subject: " + b"\n x" * 330_000 + b"\n\nhi",
    "10k RFC 2231 parameters": lambda: FROM + b"Content-Type: text/plain" + b"".join(b";\n x*%d*=a" % i for i in range(10_000)) + b"\n\nhi",
    "20k encoded words": lambda: FROM + b"Subject:" + b"\n =?utf-8?B?YWFh?=" * 20_000 + b"\n\nhi",
    "50k parts": lambda: MIXED + b"--b\n\nx\n" * 50_000 + b"--b--\n",
    "20k To headers": lambda: FROM + b"To: b@example.org\n" * 20_000 + b"\nhi",
    "10k addresses": lambda: FROM + b"To: " + b",\n ".join(b"b%d@example.org" % i for i in range(10_000)) + b"\n\nhi",
    "depth 1,000": lambda: nested(1_000),
    "nested comments": lambda: FROM + b"To: " + b"(" * 31_000 + b")" * 31_000 + b"\n\nhi",
    "NUL bytes": lambda: FROM + b"Subject: a\x00b\n\n" + b"\x00" * 1_000_000,
    "26 MB body": lambda: FROM + b"\n" + b"a" * 26_000_000,
    # the same, squeezed under the limits
    "RFC 2231 parameters within the header limit": lambda: FROM + b"Content-Disposition: attachment" + b"".join(
        b"; filename*%d*=a" % i for i in range(3_000)) + b"\n\nhi",
    "encoded words within the header limit": lambda: FROM + b"Subject:" + b" =?utf-8?B?YWFh?=" * 3_500 + b"\n\nhi",
    "addresses within the header limit": lambda: FROM + b"To: " + b",".join(b"b%d@example.org" % i for i in range(3_500)) + b"\n\nhi",
    "comments in From and Reply-To": lambda: b"From: " + b"(" * 15_000 + b")" * 15_000 + b"\nReply-To: " + b"(" * 15_000 + b"\n\nhi",
    "quotes and backslashes": lambda: b"From: " + b'"\\' * 30_000 + b"\n\nhi",
    "a date of 60 KB": lambda: FROM + b"Date: " + b"1 " * 30_000 + b"\n\nhi",
    "depth 20,000": lambda: nested(20_000),
    "1,000 embedded messages": lambda: b"Content-Type: message/rfc822\n\n" * 1_000 + b"Subject: a\n\nhi",
    "200k embedded messages": lambda: b"Content-Type: message/rfc822\n\n" * 200_000 + b"Subject: a\n\nhi",
    "17 MB header in a part": lambda: MIXED + b'--b\nContent-Type: text/plain; x="' + WORDS * 1_000_000 + b'"\n\nhi\n--b--\n',
    "17 MB header in an embedded message": lambda: FROM + b"Content-Type: message/rfc822\n\nSubject: " + WORDS * 1_000_000 + b"\n\nhi",
    "1M boundaries": lambda: MIXED + b"--b\n" * 1_000_000,
    "24 MB of base64": lambda: FROM + b"Content-Transfer-Encoding: base64\n\n" + b"QUFB" * 6_000_000,
    "broken base64": lambda: FROM + b"Content-Transfer-Encoding: base64\n\n" + b"QUFB*=" * 1_000_000,
    "24 MB of quoted-printable HTML": lambda: FROM + b"Content-Type: text/html\nContent-Transfer-Encoding: quoted-printable\n\n"
    + b"=3Cdiv=3E" * 2_400_000,
    "400k nested elements": lambda: FROM + b"Content-Type: text/html\n\n" + b"<div>" * 400_000,
    "400k attributes": lambda: FROM + b"Content-Type: text/html\n\n<p " + b"a=1 " * 400_000 + b">",
    "400k unclosed links": lambda: FROM + b"Content-Type: text/html\n\n" + b"<a href=x>" * 200_000,
    "2 MB of utf-7": lambda: FROM + b"Content-Type: text/plain; charset=utf-7\n\n" + b"+AGE-" * 400_000,
    "a codec that unpacks": lambda: FROM + b"Content-Type: text/plain; charset=zip\n\n" + b"x\x9c" * 1_000_000,
    "bytes in no charset": lambda: FROM + b"\n" + bytes(range(128, 256)) * 15_000,
    "20 MB of uuencode": lambda: FROM + b"Content-Transfer-Encoding: x-uuencode\n\nbegin 644 x\n" + b"M" * 20_000_000,
    "2 MB of quote marks": lambda: FROM + b"\n" + b">" * 2_000_000,
    "2 MB of digits": lambda: FROM + b"\n" + b"4111 1111 " * 200_000,
    "2 MB of half a link": lambda: FROM + b"\n" + b"http://a." * 220_000,
}
