"""Feedback survives kills and crowds, learning helps, and nothing is replaced by something worse."""

import json
import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from email_trm.cli.feedback import feedback_app
from email_trm.cli.feedback import learn as learn_command
from email_trm.core.errors import ConfigError, DataError, GateError, ModelError, SourceError
from email_trm.data.feedback import Correction, FeedbackStore, moved
from email_trm.data.store import write_mails
from email_trm.data.tokens import segment_texts, train_tokenizer
from email_trm.mail.message import Email
from email_trm.mail.sample import sample_mailbox
from email_trm.serving import learn as learning
from email_trm.serving.bundle import model_version
from email_trm.serving.classifier import EmailClassifier
from email_trm.serving.learn import beside, exchange, learn, objections, paired, publish, settle
from email_trm.training.trainer import Recipe, build_model, learn_evidence
from email_trm.trm.files import REQUIRED, save_model

posix = pytest.mark.skipif(os.name != "posix", reason="kills and permissions as POSIX has them")
FORK: Any = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")  # A child that need not import torch again


@pytest.fixture(scope="module")
def mails() -> list[Email]:
    """Labelled synthetic mail."""
    return [m for m in sample_mailbox(500) if m.category]


@pytest.fixture(scope="module")
def tiny(mails: list[Email], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: a small network with random weights, and evidence that knows the sample well."""
    torch.manual_seed(0)
    names = sorted({str(m.category) for m in mails})
    tokenizer = train_tokenizer((t for m in mails for t in segment_texts(m)), 1000)
    shape = {"hidden_size": 32, "pair_buckets": 64}
    model = build_model(Recipe(model=shape), tokenizer, names, learn_evidence(mails[:250], names)[0]).eval()
    model.classifier.weight.data *= 0.1
    return save_model(model, tokenizer, tmp_path_factory.mktemp("tiny") / "model")


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def wishes(mails: list[Email], n: int = 20) -> list[Correction]:
    """Somebody wants newsletters filed as work."""
    return [Correction(m, "work", "widget", "newsletter", 0.9) for m in mails if m.category == "newsletter"][:n]


def others(mails: list[Email]) -> list[Email]:
    """What she leaves as it is."""
    return [m for m in mails[250:] if m.category != "newsletter"]


# The store


def write_forever(folder: str, says: Connection) -> None:
    """Add corrections until killed, and say so after each."""
    store = FeedbackStore(folder)
    for n in range(1_000_000):
        store.add(*(Correction(Email(f"{n}-{i}", body="word " * 400), "work", "api") for i in range(3)))
        says.send_bytes(b"x")


@posix
def test_a_kill_loses_nothing_that_was_added(tmp_path: Path) -> None:
    """What was reported as added is there after `kill -9`, and a group of corrections is there wholly or not at all."""
    for wait in (0.0, 0.013, 0.031):
        folder, (hears, says) = tmp_path / str(wait), FORK.Pipe(duplex=False)
        child = FORK.Process(target=write_forever, args=(str(folder), says))
        child.start()
        hears.recv_bytes()
        time.sleep(wait)
        child.kill()
        child.join()
        said = 1
        while hears.poll():
            said += len(hears.recv_bytes())
        store = FeedbackStore(folder)
        found = store.counts()
        assert found["mails"] == found["rows"] and found["mails"] % 3 == 0
        assert found["mails"] >= 3 * said
        assert store.add(Correction(Email("after"), "work", "api")) == 1


def add_some(folder: str, who: int) -> None:
    """Ten corrections of one's own, and ten of the same mail as everybody."""
    store = FeedbackStore(folder)
    for n in range(10):
        store.add(Correction(Email(f"{who}-{n}"), "work", "api"), Correction(Email("all"), f"{who}-{n}", "api"))


@posix
def test_several_processes_and_threads_write_at_once(tmp_path: Path) -> None:
    """No correction is lost, also when all begin with a store that does not exist."""
    crowd: list[Any] = [FORK.Process(target=add_some, args=(str(tmp_path / "s"), w)) for w in range(2)]
    crowd += [threading.Thread(target=add_some, args=(str(tmp_path / "s"), w)) for w in range(2, 6)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    counts = FeedbackStore(tmp_path / "s").counts()
    assert counts["mails"] == 61
    assert counts["rows"] == 120
    assert len(FeedbackStore(tmp_path / "s").history("all")) == 60


def test_a_torn_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    """A truncated or overwritten store stops with a remedy, without a word of mail, and is not touched."""
    store = FeedbackStore(tmp_path)
    store.add(*(Correction(Email(str(n), body="zanzibar " * 500), "work", "api") for n in range(20)))
    whole = store.path.read_bytes()
    for damaged in (whole[:len(whole) // 2], b"no database" * 1000):
        store.path.write_bytes(damaged)
        with pytest.raises(SourceError) as caught:
            FeedbackStore(tmp_path).labels()
        assert "damaged" in str(caught.value) and "zanzibar" not in str(caught.value)
        assert store.path.read_bytes() == damaged
    store.path.write_bytes(whole)
    assert len(store.labels()) == 20


@posix
def test_a_journal_left_by_a_kill_is_rolled_back(tmp_path: Path) -> None:
    """A process dies in a transaction whose pages are on disk already: the next one sees the state before."""
    store = FeedbackStore(tmp_path)
    store.add(Correction(Email("kept"), "work", "api"))
    code = (f"import os, sqlite3; base = sqlite3.connect({str(store.path)!r}, isolation_level=None); base.execute('PRAGMA cache_size = 2');"
        "base.execute('BEGIN IMMEDIATE');"
        "[base.execute('INSERT INTO mails VALUES (?, ?)', (str(n), 'x' * 5000)) for n in range(500)]; os.kill(os.getpid(), 9)")
    subprocess.run([sys.executable, "-c", code], check=False)
    assert store.path.with_name("feedback.sqlite-journal").exists()
    assert [m.id for m in FeedbackStore(tmp_path).labels()] == ["kept"]
    with sqlite3.connect(store.path) as base:
        assert base.execute("SELECT COUNT(*) FROM mails").fetchone() == (1,)


def test_forgetting_removes_the_words(tmp_path: Path, mails: list[Email]) -> None:
    """Neither the text nor what was said remains in any file, the other mails do."""
    store = FeedbackStore(tmp_path)
    store.add(*(Correction(m, "work", "api") for m in mails[:30]))
    store.add(Correction(Email("x", "quetzal", "zanzibar " * 3000, "Ada <ada@example.org>"), "work", "api"))
    store.add(Correction(Email("x", "quetzal", "zanzibar " * 3000, "Ada <ada@example.org>"), "spam", "widget"))
    assert store.forget("x") and not store.forget("x")
    left = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert b"zanzibar" not in left and b"quetzal" not in left
    assert store.history("x") == [] and len(store.labels()) == 30


@posix
def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    """The folder is made private, also one that was open before; an export is private too."""
    (tmp_path / "s").mkdir(mode=0o755)
    store = FeedbackStore(tmp_path / "s")
    store.add(Correction(Email("1", body="a"), "work", "api"))
    store.export(tmp_path / "out.jsonl.gz")
    for path in (store.path, store.path.parent, tmp_path / "out.jsonl.gz"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


@settings(max_examples=10, deadline=None)
@given(st.text(st.characters(), max_size=30), st.text(st.characters(), max_size=30), st.dictionaries(st.text(), st.text(), max_size=3))
def test_any_mail_comes_back(tmp_path_factory: pytest.TempPathFactory, name: str, body: str, headers: dict[str, str]) -> None:
    """Surrogates, zeros and all: text comes back as it was, and is found and forgotten by its id."""
    store = FeedbackStore(tmp_path_factory.mktemp("any"))
    mail = Email(name or "1", body, body, headers={k.lower(): v for k, v in headers.items()})
    store.add(Correction(mail, "work", "file"))
    assert store.labels() == [replace(mail, category="work")]
    assert store.forget(mail.id)


def test_moved_mails() -> None:
    """Only what went from one category's folder to another's counts, whatever the server calls its folders."""
    names = ["work", "spam"]
    def now(folder: str | None) -> list[str]:
        return [c.category for c in moved({"1": "work"}, [Email("1", folder=folder)], names)]
    assert now("EmailTRM/spam") == now("INBOX.EmailTRM.spam") == now("INBOX/emailtrm/Spam") == ["spam"]
    for quiet in ("EmailTRM/work", "EmailTRM/Quarantine", "INBOX", "Trash", "NotEmailTRM/spam", "EmailTRM/spam/old", None):
        assert now(quiet) == []
    assert moved({"2": "work"}, [Email("1", folder="EmailTRM/spam")], names) == []


# Learning


def test_corrections_are_learned_and_the_rest_stays(tmp_path: Path, tiny: Path, mails: list[Email]) -> None:
    """Twenty corrections: all right afterwards, the guard passed, the folder private, its history told without mail."""
    store, rest = FeedbackStore(tmp_path / "store"), others(mails)
    store.add(*wishes(mails), Correction(rest[0], str(rest[0].category), "api", rest[0].category))
    done = learn(store, tmp_path / "mine", tiny, rest[:100], rest[100:])
    scores = done.record["scores"]
    assert (scores["corrections"]["n"], scores["corrections"]["after"]["right"]) == (20, 20)
    assert scores["corrections"]["before"]["right"] < 5
    assert scores["file"]["lost"] - scores["file"]["gained"] <= 1
    record = json.loads((tmp_path / "mine" / "training.json").read_text())
    assert record["parent"] == {"folder": str(tiny), "hash": model_version(tiny)}
    assert record["corrections"] == {"n": 20, "by_source": {"widget": 20}, "by_category": {"work": 20}}
    assert not any(m.id in json.dumps(record) for m in mails)
    assert {p.category for p in EmailClassifier.from_pretrained(tmp_path / "mine").predict([c.mail for c in wishes(mails)])} == {"work"}
    assert files(tmp_path / "mine")["tokenizer.json"] == files(tiny)["tokenizer.json"]
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o700


def test_learning_twice_gives_the_same_and_keeps_the_previous(tmp_path: Path, tiny: Path, mails: list[Email]) -> None:
    """It begins from the parent again, not from what it learned; the same corrections give the same weights."""
    rest, target = others(mails), tmp_path / "mine"
    learn(wishes(mails, 10), target, tiny, rest[:60], rest[60:])
    first = files(target)
    again = learn(wishes(mails, 10), target, None, rest[:60], rest[60:])
    assert again.record["parent"]["folder"] == str(tiny)
    assert files(target)["model.safetensors"] == first["model.safetensors"]
    assert files(beside(target)[0]) == first
    learn(wishes(mails, 20), target, None, rest[:60], rest[60:])
    assert files(target)["model.safetensors"] != first["model.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "mine.previous"]


def test_sabotage_is_refused(tmp_path: Path, tiny: Path, mails: list[Email]) -> None:
    """Labels in disorder make a worse model. It is refused with exit code 3, and no byte of the old one changes."""
    rest, target = others(mails), tmp_path / "mine"
    learn(wishes(mails, 10), target, tiny, rest[:100], rest[100:])
    before, names = files(target), sorted({str(m.category) for m in mails})
    wrong = [Correction(m, names[names.index(str(m.category)) - 1], "api") for m in rest[100:200]]
    with pytest.raises(GateError) as caught:
        learn(wrong, target, None, rest[:100], [])
    assert caught.value.exit_code == 3
    assert "guard (file, 100 mails)" in str(caught.value)
    assert files(target) == before
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert learn(wrong, target, None, rest[:100], [], dry_run=True).objections
    assert files(target) == before


def test_the_guard_is_strict() -> None:
    """One mail too many is refused, a clear loss is refused, noise is not."""
    fine = {"n": 10, "gained": 5, "lost": 0, "p": 0.1, "before": {"right": 0}, "after": {"right": 5}}
    def part(n: int, gained: int, lost: int) -> dict[str, Any]:
        return {"n": n, "gained": gained, "lost": lost, "p": learning.mcnemar(lost, gained)}
    for n, gained, lost, refused in ((99, 0, 1, True), (100, 0, 1, False), (1000, 0, 4, False), (1000, 0, 5, True), (1000, 40, 51, True),
            (1000, 40, 50, False), (100, 50, 0, False)):
        assert bool(objections({"corrections": fine, "file": part(n, gained, lost)})) == refused, (n, gained, lost)
    assert objections({"corrections": fine | {"after": {"right": 0}}})


def test_what_cannot_be_learned(tmp_path: Path, tiny: Path, mails: list[Email]) -> None:
    """No corrections, foreign categories, a foreign folder, the box, a parent that changed: each says what to do."""
    rest = others(mails)
    with pytest.raises(DataError):
        learn([], tmp_path / "a", tiny)
    with pytest.raises(DataError):
        learn([Correction(rest[0], "golf", "api")], tmp_path / "a", tiny)
    with pytest.raises(ConfigError):
        learn(wishes(mails), learning.default_folder(), tiny)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(ConfigError):
        learn(wishes(mails), tmp_path / "home", tiny)
    with pytest.raises(ModelError):
        learn(wishes(mails), tmp_path / "a", tmp_path / "home")
    parent = tmp_path / "parent"
    parent.mkdir()
    for name, content in files(tiny).items():
        (parent / name).write_bytes(content)
    learn(wishes(mails), tmp_path / "mine", parent, rest[:60], rest[60:])
    (parent / "config.json").write_text((parent / "config.json").read_text() + "\n")
    with pytest.raises(ConfigError, match="has changed"):
        learn(wishes(mails), tmp_path / "mine", None, rest[:60], rest[60:])


def test_confirmed_answers_guard_and_are_not_learned(tiny: Path, mails: list[Email], tmp_path: Path) -> None:
    """Without a file, the answers that were confirmed are a part of the guard, beside the synthetic sample."""
    rest = others(mails)
    said = [*wishes(mails), *(Correction(m, str(m.category), "widget", m.category) for m in rest[:30])]
    record = learn(said, tmp_path / "mine", tiny, mail=rest[30:], dry_run=True).record
    assert set(record["scores"]) == {"corrections", "confirmed", "synthetic"}
    assert (record["scores"]["confirmed"]["n"], record["corrections"]["n"]) == (30, 20)
    assert not (tmp_path / "mine").exists()


# Replacing


def fake(folder: Path, mark: str) -> Path:
    """A folder that could be a model."""
    folder.mkdir()
    for name in REQUIRED:
        (folder / name).write_text(mark)
    return folder


def publish_and_die(output: str, at: int, atomic: bool) -> None:
    """Replace a model, and be killed before the `at`-th rename or removal."""
    import shutil
    done = [0]
    def counted(function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if done[0] == at:
                os.kill(os.getpid(), 9)
            done[0] += 1
            return function(*args, **kwargs)
        return run
    os.replace, shutil.rmtree = counted(os.replace), counted(shutil.rmtree)
    learning.exchange = counted(exchange) if atomic else lambda a, b: False
    work = beside(Path(output))[1]
    fake(work, "new")
    publish(work, Path(output))


def deaths() -> Iterator[tuple[bool, int]]:
    """Every moment of both ways."""
    return ((atomic, at) for atomic in (True, False) for at in range(5))


@posix
@pytest.mark.parametrize(("atomic", "at"), deaths())
def test_a_kill_while_replacing_leaves_a_whole_model(tmp_path: Path, atomic: bool, at: int) -> None:
    """Old or new, never none: at once where folders can be swapped, after the next call elsewhere."""
    if atomic and not exchange(fake(tmp_path / "a", "a"), fake(tmp_path / "b", "b")):
        pytest.skip("this system cannot swap folders")
    output = fake(tmp_path / "mine", "old")
    fake(beside(output)[0], "older")
    process = FORK.Process(target=publish_and_die, args=(str(output), at, atomic))
    process.start()
    process.join()
    if atomic:
        assert output.is_dir()
    settle(output)
    assert {p.read_text() for p in output.iterdir()} in ({"old"}, {"new"})
    assert sorted(p.name for p in output.iterdir()) == sorted(REQUIRED)
    assert not list(tmp_path.glob(".mine.*"))
    assert process.exitcode in (0, -9)
    publish(fake(beside(output)[1], "newest"), output)
    assert (output / "config.json").read_text() == "newest"


# Commands


def test_the_commands(tmp_path: Path, tiny: Path, mails: list[Email], monkeypatch: pytest.MonkeyPatch) -> None:
    """add, list, export, forget, learn: exit codes, and never a word of mail."""
    app = typer.Typer()
    app.add_typer(feedback_app, name="feedback")
    app.command()(learn_command)
    monkeypatch.setenv("EMAIL_TRM_FEEDBACK", str(tmp_path / "store"))
    def run(*words: str) -> Any:
        return CliRunner().invoke(app, list(words))
    rest = others(mails)
    write_mails([replace(c.mail, category="work") for c in wishes(mails)], tmp_path / "corrected.jsonl")
    write_mails(rest[:80], tmp_path / "guard.jsonl")
    write_mails([replace(m, category=None) for m in rest[80:]], tmp_path / "mail.jsonl")
    assert "20 corrections added" in run("feedback", "add", str(tmp_path / "corrected.jsonl")).output
    assert "20 known already" in run("feedback", "add", str(tmp_path / "corrected.jsonl")).output
    assert isinstance(run("feedback", "add", str(tmp_path / "mail.jsonl")).exception, SourceError)
    assert run("feedback", "export", str(tmp_path / "out.parquet")).exit_code == 0
    gone = wishes(mails)[0].mail.id
    assert run("feedback", "forget", gone).exit_code == 0
    assert isinstance(run("feedback", "forget", gone).exception, DataError)
    options = ["--output", str(tmp_path / "mine"), "--model", str(tiny), "--guard", str(tmp_path / "guard.jsonl"), "--mail",
        str(tmp_path / "mail.jsonl")]
    dry = run("learn", *options, "--dry-run")
    assert dry.exit_code == 0 and not (tmp_path / "mine").exists()
    real, listed = run("learn", *options), run("feedback", "list")
    assert real.exit_code == 0 and "19 corrections learned" in real.output
    assert EmailClassifier.from_pretrained(tmp_path / "mine").categories
    for result in (dry, real, listed):
        assert not any(m.subject and m.subject in result.output for m in mails)


# With the model in the box


@pytest.mark.slow
def test_a_hundred_corrections_with_the_model_in_the_box(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A hundred corrections of synthetic mail, the whole way; prints what it took."""
    mails = [m for m in sample_mailbox(1500, seed=3) if m.category]
    answers = EmailClassifier.from_pretrained().predict(mails)
    wrong = [Correction(m, str(m.category), "api", a.category, a.confidence) for m, a in zip(mails, answers, strict=True)
        if a.category != m.category][:100]
    learned = {c.mail.id for c in wrong}
    began = time.process_time(), time.monotonic()
    done = learn(wrong, tmp_path / "mine", guard=[m for m in mails if m.id not in learned][:400])
    spent = time.process_time() - began[0], time.monotonic() - began[1]
    with capsys.disabled():
        print(f"\n100 corrections: {spent[0]:.1f} s CPU, {spent[1]:.1f} s in all; {done.record['scores']['file']}")
    scores = done.record["scores"]
    assert scores["corrections"]["n"] == 100
    assert scores["corrections"]["after"]["right"] >= 95


def test_paired_counts(mails: list[Email]) -> None:
    """Won and lost are counted mail by mail."""
    was = pd.DataFrame({"id": list("abcd"), "language": "en", "category": list("xxyy"), "predicted": list("xyyx"), "confidence": 0.5})
    now = was.assign(predicted=list("xxxx"))
    found = paired(was, now)
    assert (found["n"], found["gained"], found["lost"]) == (4, 1, 1)
    assert found["before"]["accuracy"] == found["after"]["accuracy"] == 0.5
