"""The service from outside: made-up requests against its own contract, hostile mail, too much at once, an end in the middle, a browser."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("schemathesis", reason="needs the extra 'dev'")
from bombs import BOMBS
from browser import console_messages, find_chromium
from fuzz_api import run_contract

from email_trm.mail.sample import sample_mailbox
from email_trm.serving.classifier import EmailClassifier

pytestmark = pytest.mark.xdist_group("api")
KEY = "test-" + "k" * 32
CANARY = "Kanarienvogel"


@contextmanager
def running(tmp_path: Path, *options: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """A service of its own process: its address, the process, and the file it logs to."""
    log = tmp_path / "serve.log"
    code = "import typer; from email_trm.cli.serve import serve; typer.run(serve)"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", code, "--port", "0", "--log", "DEBUG", *options], stdout=out, stderr=out,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)
    try:
        address = ""
        for _ in range(1200):
            found = re.search(r"http://[\w.:\[\]]+", log.read_text())
            address = found[0] if found else ""
            with suppress(requests.ConnectionError):
                if address and requests.get(f"{address}/readyz", timeout=9).status_code == 200:
                    break
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield address, process, log
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A service with a key, which most tests share."""
    with running(tmp_path_factory.mktemp("api"), "--queue", "400", EMAIL_TRM_API_KEY=KEY) as (address, _, log):
        yield address, log


def post(address: str, path: str, **options: object) -> requests.Response:
    """A request with the key."""
    headers = {"Authorization": f"Bearer {KEY}"} | options.pop("headers", {})
    return requests.post(address + path, headers=headers, timeout=60, **options)


def test_answers_are_the_classifiers(service):
    address, _ = service
    mails = sample_mailbox(120)[:60]
    names = ("id", "subject", "body", "sender", "recipient", "headers")
    records = [{n: getattr(m, n) for n in names} for m in mails]
    found = post(address, "/v1/classify", json={"emails": records}).json()["predictions"]
    expected = EmailClassifier.from_pretrained().predict(records)
    names = ("id", "category", "steps", "language")
    assert [[p[n] for n in names] for p in found] == [[getattr(p, n) for n in names] for p in expected]
    assert max(abs(p["confidence"] - e.confidence) for p, e in zip(found, expected, strict=True)) < 1e-4
    alone = [post(address, "/v1/classify", json={"emails": [r]}).json()["predictions"][0] for r in records[:8]]
    assert [a["category"] for a in alone] == [p["category"] for p in found[:8]]


def test_made_up_requests_keep_the_contract(service):
    """schemathesis against the OpenAPI document. `make evidence-serving` makes thousands of cases per endpoint."""
    address, log = service
    before = log.read_text().count('"event": "request"')
    found = run_contract(address, 6, "examples,coverage,fuzzing", key=KEY, seconds=300)
    assert found["failures"] == [] and found["errors"] == 0
    assert found["tested"] >= 10 and found["cases"] > 300
    assert log.read_text().count('"event": "request"') - before >= found["cases"] // 2


def test_the_contract_test_can_fail(tmp_path):
    """A service that breaks its promise is caught: this one says it returns a number, and returns text."""
    code = ("import sys, uvicorn; from fastapi import FastAPI; from fastapi.responses import JSONResponse; app = FastAPI()\n"
        "@app.get('/n', response_model=int)\nasync def n(): return JSONResponse('text')\n"
        "uvicorn.run(app, fd=int(sys.argv[1]), log_level='critical')")
    with socket.create_server(("127.0.0.1", 0)) as place:
        process = subprocess.Popen([sys.executable, "-c", code, str(place.fileno())], pass_fds=[place.fileno()])
        try:
            found = run_contract(f"http://127.0.0.1:{place.getsockname()[1]}", 3, "fuzzing")
        finally:
            process.kill()
            process.wait()
    assert [f["operations"] for f in found["failures"]] == [["GET /n"]]


def test_hostile_messages_are_refused_not_feared(service):
    """Every bomb through /raw: an answer or a refusal, never 5xx, and the next message is read."""
    address, _ = service
    kind = {"content-type": "message/rfc822"}
    good = b"From: a@example.org\nSubject: Lunch?\n\nNoon?"
    found = {name: post(address, "/v1/classify/raw", data=make(), headers=kind).status_code for name, make in BOMBS.items()}
    assert set(found.values()) <= {200, 413, 422}, found
    assert 422 in found.values() and 200 in found.values() and found["26 MB body"] == 413
    assert post(address, "/v1/classify/raw", data=good, headers=kind).status_code == 200


def test_text_that_json_can_carry_and_files_cannot(service):
    """Lone surrogates, NUL, NaN, numbers of a thousand digits, deep nesting: 4xx or an answer."""
    address, _ = service
    head = {"content-type": "application/json"}
    bodies = [b'{"emails": [{"subject": "\\ud800"}]}', b'{"emails": [{"subject": "\\u0000"}]}', b'{"emails": [{"subject": NaN}]}',
        b'{"emails": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"emails": [' + b"9" * 5_000 + b"]}", b"\xff\xfe", b"", b"null", b"[]",
        b'{"emails": [{"body": "' + b"a" * 1_000_001 + b'"}]}', json.dumps({"emails": [{"subject": "x"}] * 1_001}).encode(),
        json.dumps({"emails": [{"body": "x " * 499_000, "subject": "y" * 9_999}]}).encode()]
    found = [post(address, "/v1/classify", data=b, headers=head).status_code for b in bodies]
    assert all(code in (200, 400, 422) for code in found), found
    assert found[1] == found[-1] == 200 and found[9] == found[10] == 422


def test_too_much_is_shed_and_what_was_accepted_is_answered(service):
    """Three times what the line holds: some are told to come back, all others are answered, and then it is as before."""
    address, _ = service
    records = [{"id": m.id, "subject": m.subject, "body": m.body} for m in sample_mailbox(120)[:50]]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: post(address, "/v1/classify", json={"emails": records}), range(24)))
    codes = [a.status_code for a in answers]
    assert set(codes) == {200, 429}, codes
    assert all(1 <= int(a.headers["retry-after"]) <= 60 for a in answers if a.status_code == 429)
    first = [p["category"] for p in next(a for a in answers if a.status_code == 200).json()["predictions"]]
    assert all([p["category"] for p in a.json()["predictions"]] == first for a in answers if a.status_code == 200)
    assert post(address, "/v1/classify", json={"emails": records[:1]}).status_code == 200
    assert "email_trm_waiting_mails 0.0" in requests.get(f"{address}/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=60).text


def test_no_word_of_a_mail_is_logged(service):
    address, log = service
    post(address, "/v1/classify", json={"emails": [{"subject": CANARY, "body": CANARY, "sender": f"{CANARY}@example.org"}]})
    post(address, "/v1/classify", json={"emails": [{"subject": {CANARY: CANARY}}]})
    post(address, f"/v1/{CANARY}?x={CANARY}", json={})
    post(address, "/v1/classify/raw", data=f"Subject: {CANARY}\n\n{CANARY}".encode(), headers={"content-type": "message/rfc822"})
    post(address, "/v1/explain", json={"email": {"subject": CANARY}, "category": CANARY})
    post(address, "/v1/actions", json={"emails": [{"subject": CANARY, "timestamp": CANARY}], "owner": [f"{CANARY}@example.org"]})
    counted = requests.get(f"{address}/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=60).text
    said = log.read_text()
    assert said.count('"event": "request"') >= 6
    assert CANARY.lower() not in (said + counted).lower() and KEY not in said


def test_dawdling_browsing_and_an_end_in_the_middle(tmp_path):
    """One more service, with twelve seconds of patience, until its end. The parts share it because starting one takes seconds."""
    with running(tmp_path, "--timeout", "12") as (address, process, log):
        with ThreadPoolExecutor(1) as pool:
            seen = pool.submit(look_at_the_page, address) if find_chromium() else None
            a_dawdling_client_waits_alone(address)
            if seen:
                seen.result()
        before = log.read_text().count("model.loaded")
        process.send_signal(signal.SIGHUP)  # The same model: nothing to replace
        assert requests.post(f"{address}/v1/model/reload", timeout=60).status_code == 200
        assert log.read_text().count("model.loaded") == before == 1
        accepted_requests_are_answered(address, process)
    if seen is None:
        pytest.skip("no Chromium here: the page was not looked at")


def a_dawdling_client_waits_alone(address: str) -> None:
    """A request whose body does not come holds up nobody."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=40) as slow:
        slow.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        assert requests.post(f"{address}/v1/classify", json={"emails": [{"subject": "x"}]}, timeout=20).status_code == 200
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def look_at_the_page(address: str) -> None:
    """The page's own example, in headless Chromium: answer, steps and highlighted words; nothing on the console."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=30000", "--dump-dom"]
    said = subprocess.run([find_chromium(), *options, f"{address}/#example"], capture_output=True, text=True, timeout=120, check=False)
    assert requests.get(address, timeout=9).headers["content-security-policy"].startswith("default-src 'none'")
    page = said.stdout
    assert re.search(r'<strong id="category">shopping</strong>', page)
    assert page.count("<mark") >= 5 and "step 2" in page and 'id="result" aria-live="polite">' in page
    assert console_messages(said.stderr) == []


def accepted_requests_are_answered(address: str, process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM while twenty requests are in work: all of them are answered, and the exit code is 0."""
    records = [{"subject": m.subject, "body": m.body} for m in sample_mailbox(120)[:12]]
    with ThreadPoolExecutor(20) as pool:
        jobs = [pool.submit(requests.post, f"{address}/v1/classify", json={"emails": records}, timeout=60) for _ in range(20)]
        waiting = 0.0
        for _ in range(400):  # Until they are in the line
            counted = requests.get(f"{address}/metrics", timeout=60).text
            waiting = max(waiting, float(re.search(r"(?m)^email_trm_waiting_mails (\S+)", counted)[1]))
            if waiting > 10 * len(records):
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        answers = [job.result() for job in jobs]
        assert process.wait(timeout=60) == 0
    assert waiting > 10 * len(records)
    assert [a.status_code for a in answers] == [200] * 20
