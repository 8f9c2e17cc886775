"""A Dovecot of its own on 127.0.0.1, for the tests that need a real mail server."""

import getpass
import hashlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

import pytest

USER, PASSWORD = "deniz@example.org", 'correct horse ığ"\\ battery'

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


def snapshot(home: Path) -> dict[str, str]:
    """Every message file of the maildir: where it lies, under which name (which holds its flags), and its bytes."""
    files = [p for part in ("cur", "new", "tmp") for p in (home / "Maildir").rglob(f"{part}/*") if p.is_file()]
    return {str(p.relative_to(home)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@contextmanager
def running(fill: Callable[[Path], Any]) -> Iterator[Server]:
    """A running Dovecot whose mailbox `fill` wrote, in a folder of its own that everybody may enter (it runs as several users)."""
    program = find_dovecot()
    home = Path(tempfile.mkdtemp(prefix="dovecot-"))
    home.chmod(0o755)
    one = Server(program, home)
    one.expected = fill(home)  # type: ignore[attr-defined]
    if os.geteuid() == 0:
        (home / "index").mkdir()
        for path in [home / "index", home / "Maildir", *(home / "Maildir").rglob("*")]:
            os.chown(path, one.owner.pw_uid, one.owner.pw_gid)
    try:
        one.start()
        yield one
    finally:
        one.stop()
        shutil.rmtree(home, ignore_errors=True)
