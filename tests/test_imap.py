"""IMAP against a real server: Dovecot on 127.0.0.1, filled with synthetic mail, unchanged afterwards."""

import io
import logging
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from dovecot import PASSWORD, USER, Server, render, running, snapshot

from email_trm.core.errors import ConfigError, SourceError
from email_trm.core.logs import get_logger, start_logging
from email_trm.mail import imap
from email_trm.mail.guard import Item, parse_item
from email_trm.mail.sample import sample_mailbox

TURKISH = "Gönderilmiş & Öğeler"
FOLDERS = {"INBOX": "", "Archive": ".Archive", "Trash": ".Trash", TURKISH: ".G&APY-nderilmi&AV8- &- &ANYBHw-eler"}
OURS = {"INBOX": "inbox", "Archive": "archive", "Trash": "trash", TURKISH: "gönderilmiş & öğeler"}
LETTERS = {
    "": ["unread"],
    "S": ["seen"],
    "RS": ["seen", "replied"],
    "FS": ["seen", "flagged"],
    "Sa": ["seen", "forwarded"],
    "DT": ["unread", "draft", "trashed"],
}


def fill(home: Path) -> dict[str, list[tuple[bytes, list[str]]]]:
    """Write a synthetic mailbox as a maildir. Returns folder -> [(bytes, flags expected)] in UID order."""
    expected: dict[str, list[tuple[bytes, list[str]]]] = {name: [] for name in FOLDERS}
    mails = sample_mailbox(160)
    for i, mail in enumerate(mails):
        name = list(FOLDERS)[i % 4 if i % 4 else 0] if i % 2 else "INBOX"
        letters = list(LETTERS)[i % len(LETTERS)]
        folder = home / "Maildir" / FOLDERS[name]
        for part in ("cur", "new", "tmp"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "dovecot-keywords").write_text("0 $Forwarded\n")
        raw = render(mail)
        new = not letters and i % 12 == 0
        (folder / ("new" if new else "cur") / (f"{1_700_000_000 + i}.M{i}.test" + ("" if new else f":2,{letters}"))).write_bytes(raw)
        expected[name].append((raw, LETTERS[letters]))
    large = b"From: a@example.org\r\nSubject: large\r\n\r\n" + (b"y" * 76 + b"\r\n") * 340_000
    (home / "Maildir" / "cur" / "1800000000.M0.test:2,S").write_bytes(large)
    expected["INBOX"].append((large, ["seen"]))
    return expected


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A running Dovecot with a filled mailbox."""
    with running(fill) as one:
        yield one


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    """The right password in the environment; short pauses."""
    monkeypatch.setenv(imap.PASSWORD_VARIABLE, PASSWORD)
    monkeypatch.setattr(imap, "BATCH", 16)
    monkeypatch.setattr(imap, "_GROUP_BYTES", 8_000)


def wanted(server: Server) -> list[tuple[bytes, str, list[str]]]:
    """What should arrive, in order: INBOX, then folders by name."""
    order = ["INBOX", *sorted(set(FOLDERS) - {"INBOX"})]
    extra = {"Archive": "archived", "Trash": "trashed"}
    return [
        (raw, OURS[name], [*flags, extra[name]] if name in extra and extra[name] not in flags else flags)
        for name in order
        for raw, flags in server.expected[name]
    ]  # type: ignore[attr-defined]


def got(items: list[Item]) -> list[tuple[bytes, str, list[str]]]:
    """The same of what did arrive."""
    return [(i.data, i.known.get("folder"), i.known.get("flags")) for i in items]


def test_every_mail_arrives_and_the_server_is_unchanged(server: Server) -> None:
    before = snapshot(server.home)
    prints = imap.imap_fingerprint(server.url())
    items = list(imap.imap_items(server.url()))
    want = wanted(server)
    assert len(items) == len(want) == sum(state["MESSAGES"] for state in imap.imap_status(server.url()).values())
    refused = [n for n, item in enumerate(items) if item.kind == "refused"]
    assert [len(want[n][0]) > 25_000_000 for n in refused] == [True] and "25,000,000" in items[refused[0]].data
    assert got(items)[: refused[0]] == want[: refused[0]] and got(items)[refused[0] + 1 :] == want[refused[0] + 1 :]
    assert {f for _, _, flags in want for f in flags} >= {
        "seen",
        "unread",
        "replied",
        "forwarded",
        "flagged",
        "draft",
        "trashed",
        "archived",
    }
    mails = [parse_item(item) for item in items if item.kind == "message"]
    assert all(m.message_id and (m.subject or m.body) and m.folder in OURS.values() and m.flags for m in mails)
    assert len({m.id for m in mails}) == len(mails)
    assert snapshot(server.home) == before, "reading changed something on the server"
    assert imap.imap_fingerprint(server.url()) == prints


def test_one_folder_by_name(server: Server) -> None:
    from urllib.parse import quote

    items = list(imap.imap_items(server.url(quote(TURKISH))))
    assert got(items) == [row for row in wanted(server) if row[1] == OURS[TURKISH]]
    with pytest.raises(SourceError, match="no folder of that name"):
        list(imap.imap_items(server.url("Archiv")))


def test_skip_leaves_out_the_first_and_fetches_only_the_rest(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    want, asked = wanted(server), []
    fetch = imap._fetch
    monkeypatch.setattr(imap, "_fetch", lambda box, uids, parts: asked.extend(uids if "BODY" in parts else []) or fetch(box, uids, parts))
    for skip in (len(want) - 5, len(want), len(want) + 9):
        asked.clear()
        assert got(list(imap.imap_items(server.url(), skip=skip))) == want[skip:]
        assert len(asked) == len(want[skip:])


def test_wrong_password_and_nothing_secret_anywhere(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    everything = logging.StreamHandler(stream)
    handler = start_logging("DEBUG", stream)
    logging.getLogger().addHandler(everything)
    seen = []
    try:
        for secret in ("hunter2-hunter2", "şifre-hunter2-hunter2"):
            monkeypatch.setenv(imap.PASSWORD_VARIABLE, secret)
            with pytest.raises(SourceError, match="refused the user name or the password") as caught:
                list(imap.imap_items(server.url()))
            assert caught.value.__context__ is None
            seen.append("".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()))
        monkeypatch.setenv(imap.PASSWORD_VARIABLE, PASSWORD)
        session = imap.ImapSession(imap.parse_imap_url(server.url()))
        box = session.connect()
        seen.append(repr(session) + repr(vars(session)) + repr(vars(box)) + repr(vars(box.client)))
        session.close(polite=True)
    finally:
        logging.getLogger().removeHandler(everything)
        get_logger().removeHandler(handler)
    text = "".join(seen) + stream.getvalue() + "".join(capfd.readouterr())
    # `capture_locals` shows this test's own loop variable, never a frame of ours: so look at frames of the package only
    assert "battery" not in text and USER not in stream.getvalue()
    for frame in "".join(seen).split('  File "')[1:]:
        if "email_trm" in frame.splitlines()[0]:
            assert "hunter2" not in frame
    assert "hunter2" not in stream.getvalue()


def test_no_password_and_password_in_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(imap.PASSWORD_VARIABLE)
    monkeypatch.setattr(imap, "_from_keyring", lambda place: None)
    monkeypatch.setattr(imap, "_BOXES", {})  # A connection would fail with KeyError
    with pytest.raises(ConfigError, match="there is no password") as caught:
        list(imap.imap_items("imap://ada@127.0.0.1:1/"))
    assert "ada" not in str(caught.value) and imap.PASSWORD_VARIABLE in str(caught.value)
    with pytest.raises(ConfigError, match="holds a password") as caught:
        imap.parse_imap_url("imaps://ada:hunter2@imap.example.org/")
    assert "hunter2" not in str(caught.value)


def test_keyring_is_asked_when_the_environment_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = pytest.importorskip("keyring")
    asked = []
    monkeypatch.delenv(imap.PASSWORD_VARIABLE)
    monkeypatch.setattr(keyring, "get_password", lambda service, user: asked.append((service, user)) or "s3cret")
    assert imap._password(imap.parse_imap_url("imaps://ada@imap.example.org/")) == "s3cret"
    assert asked == [("email-trm", "ada@imap.example.org")]


def test_tls_needs_a_certificate_that_can_be_verified(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (server.home / "cert.pem").exists():
        pytest.skip("no openssl here to make a certificate with")
    with pytest.raises(SourceError, match="cannot be verified"):
        list(imap.imap_items(server.url(scheme="imaps")))
    monkeypatch.setenv("SSL_CERT_FILE", str(server.home / "cert.pem"))
    assert got(list(imap.imap_items(server.url("Archive", "imaps")))) == [row for row in wanted(server) if row[1] == "archive"]
    place = imap.parse_imap_url(server.url())
    session = imap.ImapSession(imap.ImapPlace(place.host, place.port, place.user, None, "starttls"))
    assert "IMAP" in " ".join(session.connect().client.capabilities) and isinstance(session.connect().client.sock, imap.ssl.SSLSocket)
    session.close(polite=True)


def test_connection_lost_midway_comes_back(server: Server) -> None:
    want, log = wanted(server), io.StringIO()
    handler = start_logging("INFO", log)
    try:
        stream = imap.imap_items(server.url())
        first = [next(stream) for _ in range(20)]
        server.stop()
        back = threading.Timer(1.0, server.start)
        back.start()
        rest = list(stream)
        back.join()
    finally:
        get_logger().removeHandler(handler)
    assert '"imap.lost"' in log.getvalue()
    assert [i.data for i in first + rest if i.kind == "message"] == [row[0] for row in want if len(row[0]) < 25_000_000]


def test_connection_lost_for_good_is_a_typed_error(server: Server) -> None:
    stream = imap.imap_items(server.url(), retries=1)
    next(stream)
    server.stop()
    try:
        with pytest.raises(SourceError, match="refused the connection") as caught:
            list(stream)
        assert "What to do" in str(caught.value) and USER not in str(caught.value)
        started = time.monotonic()
        with pytest.raises(SourceError, match="refused the connection"):
            list(imap.imap_items(server.url()))
        assert time.monotonic() - started < 1
    finally:
        server.start()


def test_a_server_that_says_nothing_is_given_up() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as quiet, pytest.raises(SourceError, match="did not answer in time"):
        list(imap.imap_items(f"imap://ada@127.0.0.1:{quiet.getsockname()[1]}/", timeout=0.3))
