"""IMAP against a real server: Dovecot on 127.0.0.1, filled with synthetic mail, unchanged afterwards."""

import getpass
import hashlib
import io
import logging
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, suppress
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path

import pytest

from email_trm.core.errors import ConfigError, SourceError
from email_trm.core.logs import get_logger, start_logging
from email_trm.mail import imap
from email_trm.mail.guard import Item, parse_item
from email_trm.mail.sample import sample_mailbox

USER, PASSWORD = "deniz@example.org", 'correct horse ığ"\\ battery'
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

CONFIG = """
base_dir = {home}/run
state_dir = {home}/state
log_path = {home}/dovecot.log
protocols = imap
listen = 127.0.0.1
ssl = {ssl}
{certificate}
disable_plaintext_auth = no
mail_location = maildir:{home}/Maildir:INDEX={home}/index
mail_uid = {user}
mail_gid = {group}
first_valid_uid = 1
auth_failure_delay = 0
{users}
service imap-login {{
  {chroot}
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = {tls_port}
    ssl = yes
  }}
}}
service anvil {{
  {chroot}
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
namespace inbox {{
  inbox = yes
  mailbox Archive {{
    special_use = \\Archive
  }}
  mailbox Trash {{
    special_use = \\Trash
  }}
}}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {home}/users
}}
userdb {{
  driver = static
  args = uid={user} gid={group} home={home}
}}
"""


def find_dovecot() -> str:
    """The path of Dovecot. In CI, as root, it is installed if it is missing; else the test is skipped."""
    if os.environ.get("CI") and os.geteuid() == 0 and not shutil.which("dovecot") and shutil.which("apt-get"):
        with suppress(subprocess.SubprocessError):
            subprocess.run(
                ["apt-get", "install", "-y", "--no-install-recommends", "dovecot-imapd"],
                timeout=120,
                capture_output=True,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )
    found = shutil.which("dovecot", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if not found:
        pytest.skip("no IMAP server here: install Debian's dovecot-imapd to run this part")
    return found


def free_port() -> int:
    """A TCP port nobody uses."""
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Server:
    """A Dovecot with a home of its own, which can be stopped and started again."""

    def __init__(self, program: str, home: Path) -> None:
        self.program, self.home, self.process = program, home, None
        self.port, self.tls_port = free_port(), free_port()
        root, me = os.geteuid() == 0, getpass.getuser()
        self.owner = pwd.getpwnam("nobody") if root else pwd.getpwuid(os.geteuid())  # Dovecot never gives mail to root
        users = "" if root else f"default_login_user = {me}\ndefault_internal_user = {me}\ndefault_internal_group = {os.getegid()}"
        secure = self._certificate()
        certificate = f"ssl_cert = <{home}/cert.pem\nssl_key = <{home}/key.pem" if secure else ""
        (home / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n", encoding="utf-8")
        (home / "dovecot.conf").write_text(
            CONFIG.format(
                home=home,
                port=self.port,
                tls_port=self.tls_port if secure else 0,
                users=users,
                ssl="yes" if secure else "no",
                certificate=certificate,
                user=self.owner.pw_uid,
                group=self.owner.pw_gid,
                chroot="" if root else "chroot =",
            )
        )

    def _certificate(self) -> bool:
        """Make a certificate for 127.0.0.1 that nobody trusts; false where openssl is missing."""
        if not shutil.which("openssl"):
            return False
        return (
            subprocess.run(
                [
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                    "-nodes",
                    "-days",
                    "2",
                    "-subj",
                    "/CN=127.0.0.1",
                    "-addext",
                    "subjectAltName=IP:127.0.0.1",
                    "-keyout",
                    str(self.home / "key.pem"),
                    "-out",
                    str(self.home / "cert.pem"),
                ],
                capture_output=True,
            ).returncode
            == 0
        )

    def start(self) -> None:
        """Start, and wait until the server greets."""
        self.process = subprocess.Popen(
            [self.program, "-F", "-c", str(self.home / "dovecot.conf")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(100):
            with suppress(OSError), closing(socket.create_connection(("127.0.0.1", self.port), 1)) as s:
                if s.recv(4) == b"* OK":
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        log = self.home / "dovecot.log"
        pytest.skip(f"Dovecot did not start here: {log.read_text()[-300:] if log.exists() else 'no log'}")

    def stop(self) -> None:
        """Kill it and the processes it started, at once: all connections are cut."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def url(self, folder: str = "", scheme: str = "imap") -> str:
        """A source for `imap_items`."""
        return f"{scheme}://{USER}@127.0.0.1:{self.tls_port if scheme == 'imaps' else self.port}/{folder}"


def render(mail) -> bytes:
    """A synthetic mail as RFC 822 bytes."""
    message = EmailMessage(policy=SMTP)
    message["From"], message["To"], message["Subject"] = mail.sender, mail.recipient, mail.subject
    message["Message-ID"] = f"<{mail.id}@example.org>"
    message.set_content(mail.body)
    return message.as_bytes()


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


def snapshot(home: Path) -> dict[str, str]:
    """Every message file of the maildir: where it lies, under which name (which holds its flags), and its bytes."""
    files = [p for part in ("cur", "new", "tmp") for p in (home / "Maildir").rglob(f"{part}/*") if p.is_file()]
    return {str(p.relative_to(home)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A running Dovecot with a filled mailbox, in a folder of its own that everybody may enter (it runs as several users)."""
    program = find_dovecot()
    home = Path(tempfile.mkdtemp(prefix="dovecot-"))
    home.chmod(0o755)
    one = Server(program, home)
    one.expected = fill(home)  # type: ignore[attr-defined]
    if os.geteuid() == 0:
        (home / "index").mkdir()
        for path in [home / "index", home / "Maildir", *(home / "Maildir").rglob("*")]:
            os.chown(path, one.owner.pw_uid, one.owner.pw_gid)
    one.start()
    yield one
    one.stop()
    shutil.rmtree(home, ignore_errors=True)


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
