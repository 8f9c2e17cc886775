"""Downloads against a server on this machine that can cut lines, change files and ignore ranges."""

import hashlib
import io
import random
import shutil
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from email_trm.core.errors import ConfigError, SourceError
from email_trm.mail import corpora
from email_trm.mail.corpora import Corpus, CorpusFile, build_public_mail, download, fetch
from email_trm.mail.message import stable_id

DATA = random.Random(0).randbytes(300_000)
SUM = hashlib.sha256(DATA).hexdigest()
WRONG = DATA[:-1] + bytes([DATA[-1] ^ 1])  # One bit differs


class Handler(BaseHTTPRequestHandler):
    """Serves `state.data` under every path, with ranges; the state says how to misbehave."""

    def log_message(self, *args: object) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        """Answer, note the request, and misbehave if told to."""
        state = self.server.state  # type: ignore[attr-defined]
        state.asked.append({k.lower(): v for k, v in self.headers.items()})
        data = state.files.get(self.path.rsplit("/", 1)[-1], state.data)
        if state.codes and (code := state.codes.pop(0)):
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, wanted = 0, self.headers.get("Range")
        if wanted and state.ranges and self.headers.get("If-Range") in (None, state.etag, state.modified):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(data) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if state.etag:
            self.send_header("ETag", state.etag)
        if state.modified:
            self.send_header("Last-Modified", state.modified)
        self.end_headers()
        cut = state.cuts.pop(0) if state.cuts else None
        self.wfile.write(data[start:][:cut])
        if cut is not None:
            self.close_connection = True


@pytest.fixture
def web() -> Iterator[SimpleNamespace]:
    """A server: `url`, and the state that tells it what to do."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = SimpleNamespace(data=DATA, files={}, etag='"one"', modified=None, ranges=True, cuts=[], codes=[], asked=[])
    server.state, state.url = state, f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()


def get(web: SimpleNamespace, folder: Path, sha256: str | None = SUM, size: int | None = None, tries: int = 4) -> Path:
    """Fetch the one file, without waiting between tries."""
    return fetch(CorpusFile("https://corpus.example/box.tar.gz", size, sha256), folder, web.url, progress=False, tries=tries, pause=0.001)


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(p.name for p in folder.iterdir())


def test_whole_download_leaves_the_file_and_its_checksum(web: SimpleNamespace, tmp_path: Path) -> None:
    path = get(web, tmp_path / "new" / "folder", size=len(DATA))
    assert path.read_bytes() == DATA and names(path.parent) == ["box.tar.gz", "box.tar.gz.sha256"]
    assert (path.parent / "box.tar.gz.sha256").read_text() == f"{SUM}  box.tar.gz\n"
    assert get(web, path.parent) == path and len(web.asked) == 1, "a file that is there is not asked for again"


@pytest.mark.parametrize("validator", ["etag", "modified"])
def test_a_cut_line_is_resumed_where_it_broke(web: SimpleNamespace, tmp_path: Path, validator: str) -> None:
    web.etag, web.modified = ('"one"', None) if validator == "etag" else ('W/"weak"', "Thu, 07 May 2015 20:35:29 GMT")
    web.cuts = [140_000, 90_000]
    assert get(web, tmp_path).read_bytes() == DATA
    first, second, third = web.asked
    assert "range" not in first and second["if-range"] == third["if-range"] == (web.etag if validator == "etag" else web.modified)
    starts = [int(a["range"].removeprefix("bytes=").rstrip("-")) for a in (second, third)]
    assert 0 < starts[0] <= 140_000 and starts[0] < starts[1] <= starts[0] + 90_000
    assert names(tmp_path) == ["box.tar.gz", "box.tar.gz.sha256"]


def test_another_call_goes_on_after_a_crash(web: SimpleNamespace, tmp_path: Path) -> None:
    web.cuts = [100_000]
    with pytest.raises(SourceError, match="could not be downloaded: the line broke") as caught:
        get(web, tmp_path, tries=1)
    have = (tmp_path / "box.tar.gz.partial").stat().st_size
    assert "goes on where it stopped" in str(caught.value) and 100_000 - 65_536 < have <= 100_000
    assert get(web, tmp_path).read_bytes() == DATA and web.asked[-1]["range"] == f"bytes={have}-"


def test_complete_but_not_yet_renamed(web: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "box.tar.gz.partial").write_bytes(DATA)
    (tmp_path / "box.tar.gz.partial.json").write_text('{"validator": "\\"one\\""}')
    assert get(web, tmp_path).read_bytes() == DATA and len(web.asked) == 1


def test_a_file_that_changed_meanwhile_is_fetched_anew(web: SimpleNamespace, tmp_path: Path) -> None:
    web.cuts = [100_000]
    with pytest.raises(SourceError):
        get(web, tmp_path, sha256=None, tries=1)
    web.data, web.etag = DATA[::-1] + b"more", '"two"'
    assert get(web, tmp_path, sha256=None).read_bytes() == web.data
    assert web.asked[-1]["if-range"] == '"one"'


def test_a_server_that_ignores_ranges_is_read_from_the_start(web: SimpleNamespace, tmp_path: Path) -> None:
    web.ranges, web.cuts = False, [100_000]
    assert get(web, tmp_path).read_bytes() == DATA and "range" in web.asked[1]


def test_without_anything_to_tell_versions_apart_nothing_is_resumed(web: SimpleNamespace, tmp_path: Path) -> None:
    web.etag, web.cuts = None, [100_000]
    assert get(web, tmp_path).read_bytes() == DATA and "range" not in web.asked[1]


def test_a_shorter_file_than_what_was_there(web: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "box.tar.gz.partial").write_bytes(DATA + DATA)
    (tmp_path / "box.tar.gz.partial.json").write_text('{"validator": "\\"one\\""}')
    assert get(web, tmp_path).read_bytes() == DATA and len(web.asked) == 2


def test_wrong_checksum_is_a_typed_error_and_sets_the_file_aside(web: SimpleNamespace, tmp_path: Path) -> None:
    web.data = WRONG
    with pytest.raises(SourceError, match=r"checksum of box\.tar\.gz is wrong"):
        get(web, tmp_path)
    assert "box.tar.gz" not in names(tmp_path) and (tmp_path / "box.tar.gz.bad").read_bytes() == web.data
    web.data = DATA
    assert get(web, tmp_path).read_bytes() == DATA


def test_without_a_known_checksum_the_first_one_counts(web: SimpleNamespace, tmp_path: Path) -> None:
    path = get(web, tmp_path, sha256=None)
    path.write_bytes(WRONG)
    with pytest.raises(SourceError, match="checksum"):
        get(web, tmp_path, sha256=None)
    assert not path.exists()


@pytest.mark.parametrize("code", [404, 403, 410])
def test_what_will_not_get_better_fails_at_once(web: SimpleNamespace, tmp_path: Path, code: int) -> None:
    web.codes = [code]
    with pytest.raises(SourceError, match=f"answered {code}"):
        get(web, tmp_path)
    assert len(web.asked) == 1


def test_a_busy_server_is_asked_again(web: SimpleNamespace, tmp_path: Path) -> None:
    web.codes = [503, 429]
    assert get(web, tmp_path).read_bytes() == DATA and len(web.asked) == 3
    web.codes = [500] * 9
    with pytest.raises(SourceError, match="the server answered 500, 4 times in a row"):
        get(web, tmp_path / "other")


def test_a_size_that_cannot_be_right(web: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="300,000 bytes on the server instead of 7"):
        get(web, tmp_path, size=7)


def test_a_full_disk_is_noticed_before(web: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(SourceError, match="MB are free"):
        get(web, tmp_path)
    assert names(tmp_path) == []


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no connection"):
        fetch(CorpusFile("http://127.0.0.1:9/box"), tmp_path, progress=False, tries=2, pause=0.001)


def test_an_unknown_corpus_and_a_link_to_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'enron'"):
        download("enron2", tmp_path)


def test_download_says_the_terms_and_shows_progress(
    web: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files = tuple(CorpusFile(f"https://corpus.example/{n}.tar", None, SUM) for n in ("a", "b"))
    monkeypatch.setitem(
        corpora.CORPORA, "small", Corpus("small", "A small corpus", "https://corpus.example", files, "CC0", "nobody", "synthetic")
    )
    said: list[str] = []
    paths = download(
        "small", tmp_path, web.url, say=lambda text: said.append(text) or (web.asked and pytest.fail("asked before the terms were shown"))
    )
    assert [p.name for p in paths] == ["a.tar", "b.tar"] and "terms: CC0" in said[0]
    assert "a.tar" in capfd.readouterr().err


def test_download_then_build(web: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a URL to labelled mail: a synthetic corpus in SpamAssassin's layout."""
    packed, rows = io.BytesIO(), ["id,category,alt_category,language,source"]
    with tarfile.open(fileobj=packed, mode="w:bz2") as out:
        for i in range(20):
            raw = f"From: ada@example.org\nSubject: Mail {i}\n\nSynthetic.\n".encode()
            name = f"{i:05}.{hashlib.md5(raw, usedforsecurity=False).hexdigest()}"
            info = tarfile.TarInfo(f"easy_ham/{name}")
            info.size = len(raw)
            out.addfile(info, io.BytesIO(raw))
            if i % 2:
                rows.append(f"{stable_id(f'easy-ham-1/{name}.txt')},work,,en,spamassassin")
    web.files = {"easy.tar.bz2": packed.getvalue()}
    one = Corpus("spamassassin", "t", "h", (CorpusFile("https://corpus.example/easy.tar.bz2"),), "l", "c", "n")
    monkeypatch.setitem(corpora.CORPORA, "spamassassin", one)
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    mails = list(build_public_mail(tmp_path / "labels.csv", spamassassin=download("spamassassin", tmp_path, web.url, False, None)))
    assert sorted(m.subject for m in mails) == sorted(f"Mail {i}" for i in range(1, 20, 2)) and {m.category for m in mails} == {"work"}
