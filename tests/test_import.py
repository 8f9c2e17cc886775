"""An import survives what befalls it: bombs, `kill -9`, odd mail. What went in comes out, once."""
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from bombs import BOMBS
from fuzz import fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from email_trm.core.errors import RecordError
from email_trm.data.store import ImportOptions, import_mail
from email_trm.mail.guard import MEGABYTES, SECONDS, Item, Worker, WorkerDied, parse_items
from email_trm.mail.message import Email, email_from_bytes
from email_trm.mail.readers import ReadReport, read_emails
from email_trm.mail.sample import sample_mailbox

pytestmark = pytest.mark.xdist_group("import")


def as_message(mail: Email) -> bytes:
    """A synthetic mail as it would travel."""
    head = f"Message-ID: {mail.message_id}\nFrom: {mail.sender}\nTo: {mail.recipient}\nSubject: {mail.subject}\nDate: {mail.timestamp}\n"
    return (head + f"Content-Type: text/plain; charset=utf-8\n\n{mail.body}\n").encode()


def as_mbox(messages: list[bytes]) -> bytes:
    """Messages as an mbox."""
    return b"".join(b"From x@example.org Thu Jan  1 00:00:00 2026\n" + raw.replace(b"\nFrom ", b"\n>From ") + b"\n" for raw in messages)


# ---- bombs -----------------------------------------------------------------------------------------------------------------
class Meter:
    """Peak memory and processor time of a worker, read from /proc."""

    def __init__(self, pid: int) -> None:
        self.folder = Path(f"/proc/{pid}")

    def seconds(self) -> float:
        fields = (self.folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mb(self) -> float:
        return next(int(line.split()[1]) for line in (self.folder / "status").read_text().splitlines() if line.startswith("VmHWM")) / 1000


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="measures the worker through /proc, which only Linux has")
def test_every_bomb_stays_within_its_limits() -> None:
    """Each bomb, parsed for real in the worker: at most 2 s of processor time and 512 MB, and then an answer or a typed refusal."""
    worker = Worker()
    worker.send(Item("message", b"Subject: first\n\nhi"))
    worker.receive()
    outcomes = {}
    for name, make in BOMBS.items():
        meter = Meter(worker.process.pid)
        before, base = meter.seconds(), meter.peak_mb()
        worker.send(Item("message", make()))
        try:
            answer = worker.receive()
        except WorkerDied as death:
            outcomes[name] = death.cause  # refused by the guard: within its limits by construction
            worker.close()
            worker = Worker()
            continue
        outcomes[name] = answer["error"][0] if "error" in answer else "read"
        assert meter.seconds() - before <= SECONDS + 0.2, name
        assert meter.peak_mb() - base <= MEGABYTES, name
        assert "mail" in answer or "failed with" not in outcomes[name], f"{name}: {outcomes[name]}"
        if answer.get("last"):
            worker.close()
            worker = Worker()
    worker.close()
    over = ("1 MB header", "10k RFC 2231 parameters", "20k encoded words", "50k parts", "20k To headers", "10k addresses", "depth 1,000",
        "26 MB body")
    for name in over:
        assert "limit" in outcomes[name], f"{name}: {outcomes[name]}"
    killed = [n for n, outcome in outcomes.items() if "processor time" in outcome or "ended" in outcome]
    assert not killed, f"the limits before parsing should have caught these: {killed}"


def test_bombs_between_honest_mails() -> None:
    """Honest mail before, between and after hostile mail arrives, in order."""
    names = ["depth 1,000", "50k parts", "NUL bytes", "400k nested elements"]
    items = [Item("message", raw) for n in names for raw in (b"Subject: %s\n\nhi" % n.encode(), BOMBS[n]())]
    results = list(parse_items(items))
    assert len(results) == len(items)
    assert [r.subject for r in results[::2] if isinstance(r, Email)] == names


# ---- real mail -------------------------------------------------------------------------------------------------------------
def test_real_corpora_import_without_surprises(shared_data: Path, tmp_path: Path) -> None:
    """All 6,046 SpamAssassin files, three Enron mailboxes and the torture set: each item is a mail or a typed, counted refusal.

    Some of the 159 torture files are mailboxes themselves, so they hold more messages than files.
    """
    expected = {"raw/spamassassin.tar.xz": 6_046, "raw/enron-mbox-3-users.tar.xz": 5_006, "torture.tar.xz": 159}
    for name, items in expected.items():
        result = import_mail(shared_data / name, tmp_path / "out.parquet", ImportOptions(mask=False))
        assert result.items >= items and result.read + sum(result.skipped.values()) == result.items, name
        assert result.read >= 0.9 * items and result.ignored <= 3, name
        assert not [cause for cause in result.skipped if "failed with" in cause or "processor time" in cause or "ended" in cause], name
        (tmp_path / "out.parquet").unlink()


# ---- round trip ------------------------------------------------------------------------------------------------------------
WORDS = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=40)
HEADERS = st.dictionaries(st.sampled_from(["List-Id", "List-Unsubscribe", "Precedence", "Auto-Submitted", "Reply-To", "References", "Cc",
    "In-Reply-To", "X-Gmail-Labels", "Date", "X-Other"]), st.text(st.sampled_from("abcİı@.,<> -:1"), max_size=20), max_size=5)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message with random headers, text, and perhaps a file."""
    head = "".join(f"{k}: {' '.join(v.split())}\n" for k, v in draw(HEADERS).items())
    head += f"Subject: {' '.join(draw(WORDS).split())}\nFrom: a@example.org\n"
    text = draw(WORDS)
    if draw(st.booleans()):
        return (head + f"Content-Type: text/plain; charset=utf-8\n\n{text}\n").encode()
    return (head + f'Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/plain; charset=utf-8\n\n{text}\n--b\n'
        f'Content-Type: application/pdf; name="{draw(st.sampled_from(["a.pdf", "fatura.pdf"]))}"\n\nx\n--b--\n').encode()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(raws=st.lists(messages(), min_size=1, max_size=8))
def test_mbox_to_parquet_to_jsonl_loses_no_field(tmp_path: Path, raws: list[bytes]) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    (tmp_path / "in.mbox").write_bytes(as_mbox(raws))
    options = ImportOptions(mask=False, format="mbox")
    direct = list(read_emails(tmp_path / "in.mbox", format="mbox", isolate=False))
    import_mail(tmp_path / "in.mbox", tmp_path / "mail.parquet", options)
    import_mail(tmp_path / "mail.parquet", tmp_path / "mail.jsonl", ImportOptions(mask=False))
    stored, lines = list(read_emails(tmp_path / "mail.parquet")), list(read_emails(tmp_path / "mail.jsonl"))
    for mail in direct:  # the import fills in the language
        mail.language = stored[direct.index(mail)].language
    assert direct == stored == lines


# ---- kill -9 ---------------------------------------------------------------------------------------------------------------
IMPORT = """
import sys
from email_trm.data.store import ImportOptions, import_mail
import_mail(sys.argv[1], sys.argv[2], ImportOptions(part=20))
"""


@pytest.mark.parametrize("kind", ["parquet", "jsonl.gz"])
def test_kill_9_and_resume_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    """The import is killed at several points; then it is let run. Same bytes as an import that was left alone."""
    source = tmp_path / "in.mbox"
    source.write_bytes(as_mbox([as_message(m) for m in sample_mailbox(300)] + [b"\x00\x01"]))
    whole, again = tmp_path / f"whole.{kind}", tmp_path / f"again.{kind}"
    import_mail(source, whole, ImportOptions(part=20))
    killed = 0
    for parts in (1, 6):
        process = subprocess.Popen([sys.executable, "-c", IMPORT, str(source), str(again)])
        wanted = tmp_path / f".{again.name}.import" / f"part-{parts:05d}"
        deadline = time.monotonic() + 60
        while process.poll() is None and not wanted.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert process.returncode == 0 or not again.exists()
    assert killed
    state = json.loads((tmp_path / f".{again.name}.import" / "state.json").read_text())
    result = import_mail(source, again, ImportOptions(part=20))
    assert result.resumed == state["items"] > 0
    assert again.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_changed_source_is_imported_afresh(tmp_path: Path) -> None:
    source, output = tmp_path / "in.mbox", tmp_path / "out.jsonl"
    source.write_bytes(as_mbox([as_message(m) for m in sample_mailbox(60)]))

    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        import_mail(source, output, ImportOptions(part=20), stop)
    source.write_bytes(source.read_bytes() + as_mbox([b"From: z@example.org\nSubject: one more\n\nhi\n"]))
    result = import_mail(source, output, ImportOptions(part=20))
    assert result.resumed == 0 and result.read == len(output.read_text().splitlines()) and "one more" in output.read_text()


# ---- privacy ---------------------------------------------------------------------------------------------------------------
def test_no_mail_text_in_counts_and_records(tmp_path: Path) -> None:
    """A canary in every corner of a mail and of a broken one never shows in results, reports or the record beside the file."""
    canary = "kanarya"
    head = f"From: {canary}@example.org\nSubject: {canary}\nX-{canary}: 1\nContent-Type: text/plain; charset={canary}"
    good = f"{head}\n\n{canary}\n".encode()
    (tmp_path / "in.mbox").write_bytes(as_mbox([good, b"\x00 " + canary.encode()]))
    (tmp_path / "rows.jsonl").write_text(json.dumps({canary: canary}) + "\n" + canary)
    result = import_mail(tmp_path / "in.mbox", tmp_path / "out.parquet")
    report = ReadReport()
    with pytest.raises(Exception) as raised:
        list(read_emails(tmp_path / "rows.jsonl", report=report))
    shown = json.dumps(result.record()) + str(report) + str(raised.value) + (tmp_path / "out.parquet.import.json").read_text()
    assert canary not in shown


def test_torture_has_no_unhandled_error_in_process(shared_data: Path) -> None:
    """The same without the worker's safety net: the parser itself raises nothing but RecordError."""
    with tarfile.open(shared_data / "torture.tar.xz") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                try:
                    email_from_bytes(file.read())
                except RecordError:
                    continue


# ---- fuzzing ---------------------------------------------------------------------------------------------------------------
def test_fuzzing_in_short() -> None:
    """300 of the cases that `make evidence` runs 100,000 of. Both outcomes must occur, or the fuzzer would test nothing."""
    found = fuzz(300, number=1)
    assert found["cases"] >= 300 and found["outcomes"].get("read", 0) > 50 and len(found["outcomes"]) > 1
