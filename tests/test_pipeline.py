"""The whole line as a user walks it: run, predict, evaluate, through the installed command, on synthetic mail."""
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from forked import email_trm, run_python
from safetensors import safe_open

from email_trm.evaluation.gates import gate_rows, judge
from email_trm.mail.message import Email, email_to_dict
from email_trm.mail.sample import sample_mailbox, write_sample
from email_trm.serving.classifier import EmailClassifier

pytestmark = pytest.mark.xdist_group("pipeline")  # one worker, so that the run below is made once
KEYS = ["id", "category", "confidence", "probabilities", "steps", "language"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a small synthetic mailbox."""
    root = tmp_path_factory.mktemp("work")
    write_sample(root / "mail.jsonl", n=300)
    return root


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """One run over it, split both ways."""
    done = email_trm("run", "--source", "mail.jsonl", "--output", "run", cwd=folder)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    out = done.stdout.decode()
    assert "EmailTRM" in out and "TF-IDF + LinearSVC" in out and out.rstrip().endswith("report.html")
    assert "SYNTHETIC" in out
    return folder / "run"


@pytest.fixture(scope="module")
def held_out(folder: Path, run: Path) -> str:
    """The test mails of the run's model, as a file."""
    splits = pd.read_parquet(run / "splits.parquet")
    ids = set(splits[(splits["split"] == "random") & (splits["part"] == "test")]["id"])
    mails = [m for m in sample_mailbox(300) if m.id in ids]
    (folder / "test.jsonl").write_text("\n".join(json.dumps(email_to_dict(m)) for m in mails), encoding="utf-8")
    return "test.jsonl"


def test_run_folder_is_complete(run: Path) -> None:
    names = {p.name for p in run.iterdir()}
    assert {"report.html", "notebook.ipynb", "metrics.json", "run.json", "predictions.parquet", "splits.parquet", "model"} <= names
    assert {"confusion_random.png", "per_category_random.png", "confusion_group.png"} <= names
    assert not [p.name for p in run.parent.iterdir() if "partial" in p.name or "executed" in p.name]


def test_metrics_say_what_was_measured(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["data"]["synthetic"] is True and metrics["run"]["seed"] == 0
    frames = pd.read_parquet(run / "predictions.parquet")
    for split in ("random", "group"):
        frame, scores = frames[frames["split"] == split], metrics["models"]["EmailTRM"][split]
        assert scores["n"] == len(frame)
        assert scores["accuracy"] == pytest.approx((frame["category"] == frame["predicted"]).mean())
    assert metrics["models"]["EmailTRM"]["random"]["accuracy"] > 2 * metrics["models"]["majority"]["random"]["accuracy"]
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert record["fingerprint"] == metrics["data"]["fingerprint"] and record["parameters"]["profile"] == "quick"
    assert record["versions"]["torch"] == torch.__version__


def test_splits_share_no_mail_and_no_group(folder: Path, run: Path) -> None:
    splits = pd.read_parquet(run / "splits.parquet")
    groups = {m.id: m.group for m in sample_mailbox(300)}
    for kind, rows in splits.groupby("split"):
        assert rows["id"].is_unique
        if kind == "group":
            parts = {p: {groups[i] for i in ids} for p, ids in rows.groupby("part")["id"]}
            for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
                assert not parts[one] & parts[other]


def test_nothing_in_the_run_folder_quotes_a_mail(run: Path) -> None:
    """No body line and no address of the mailbox is anywhere in the report, the notebook, the metrics or the tables."""
    written = b"".join(p.read_bytes() for p in run.iterdir() if p.suffix in {".html", ".ipynb", ".json"})
    written += b"".join(pd.read_parquet(p).to_json().encode() for p in run.glob("*.parquet"))
    text = written.decode("utf-8")
    for mail in sample_mailbox(300):
        address = mail.sender.split("<")[-1].rstrip(">")
        assert address not in text
        for line in mail.body.splitlines():
            assert len(line) < 30 or line not in text


def test_weights_are_safetensors(run: Path) -> None:
    assert not [p for p in (run / "model").iterdir() if p.suffix in {".bin", ".pt", ".pkl"}]
    with safe_open(run / "model" / "model.safetensors", "pt") as weights:
        assert "q_head.weight" in weights.keys()  # noqa: SIM118 (not a dict)


def test_predict_keeps_order_and_promise(folder: Path, run: Path) -> None:
    done = email_trm("predict", "mail.jsonl", "--model", "run/model", "--output", "answers.jsonl", cwd=folder)
    assert done.returncode == 0, done.stderr.decode()
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    mails = [json.loads(line) for line in (folder / "mail.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [a["id"] for a in answers] == [m["id"] for m in mails]
    for answer, mail in zip(answers, mails, strict=True):
        assert list(answer) == KEYS
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert answer["confidence"] == max(answer["probabilities"].values()) == answer["probabilities"][answer["category"]]
        assert answer["language"] == mail["language"] and answer["steps"] >= 1


def test_predict_reads_what_it_promises(folder: Path, run: Path) -> None:
    """Standard input, .json, .eml and a folder; records that are not mail are counted, and the rest goes on."""
    box = folder / "box"
    box.mkdir()
    (box / "a.json").write_text(json.dumps([{"id": "a", "subject": "Lunch?", "body": "Noon?"}]), encoding="utf-8")
    (box / "b.eml").write_bytes(b"From: a@example.org\nSubject: Faturan\xc4\xb1z\n\nEkte.\n")
    (box / "c.jsonl").write_text('{"id": "c1", "body": "x"}\nnot json\n{"id": "c2", "body": "y"}\n', encoding="utf-8")
    done = email_trm("predict", "box", "--model", "run", cwd=folder)
    answers = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert done.returncode == 0 and [a["id"] for a in answers][0::2] == ["a", "c1"] and len(answers) == 4
    assert b"1 left out" in done.stderr and b"Faturan" not in done.stderr
    piped = email_trm("predict", "-", "--model", "run", cwd=folder, stdin=(box / "c.jsonl").read_bytes())
    again = [json.loads(line) for line in piped.stdout.decode().splitlines()]
    assert [(a["id"], a["category"], a["steps"]) for a in again] == [(a["id"], a["category"], a["steps"]) for a in answers[2:]]
    assert [a["confidence"] for a in again] == pytest.approx([a["confidence"] for a in answers[2:]], abs=1e-5)  # another batch


def test_prediction_does_not_depend_on_company(run: Path) -> None:
    """A trained model: alone, in a batch, beside a giant. Probabilities agree to 1e-5."""
    classifier = EmailClassifier.from_pretrained(run)
    mails = [m for m in sample_mailbox(300) if m.category][:64]
    giant = Email("giant", "long", "word " * 5000)
    together = classifier.predict_proba([*mails, giant])[:-1]
    alone = np.concatenate([classifier.predict_proba([m]) for m in mails])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_evaluate_agrees_with_the_run(folder: Path, run: Path, held_out: str) -> None:
    """The command's scores on the test mails are the run's scores."""
    done = email_trm("evaluate", held_out, "--model", "run", "--output", "scores.json", cwd=folder)
    assert done.returncode == 0, done.stderr.decode()
    scores, metrics = (json.loads((folder / p).read_text(encoding="utf-8")) for p in ("scores.json", "run/metrics.json"))
    expected = metrics["models"]["EmailTRM"]["random"]
    assert {k: scores[k] for k in ("n", "accuracy", "macro_f1")} == {k: expected[k] for k in ("n", "accuracy", "macro_f1")}


def test_gates_of_a_run_are_those_of_its_predictions(run: Path) -> None:
    """Page, file and function say the same: the gates are worked out again from predictions.parquet."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    frames = pd.read_parquet(run / "predictions.parquet")
    for split in ("random", "group"):
        frame = frames[frames["split"] == split].drop(columns="split").reset_index(drop=True)
        assert gate_rows(judge(frame, metrics["categories"])) == metrics["gates"][split]
        assert metrics["slices"][split]["single"][0]["high"] <= metrics["slices"][split]["single"][-1]["high"]
        assert set(frame["known"]) == ({"new"} if split == "group" else {"new", "known"})
    page, card = (run / "report.html").read_text(encoding="utf-8"), (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "missed" in page and 'class="failed"' in page
    assert "SYNTHETIC" in card and f"{100 * metrics['models']['EmailTRM']['random']['accuracy']:.1f}" in card


def test_a_missed_gate_has_exit_code_3(folder: Path, held_out: str) -> None:
    """And one that is met has 0. The scores are written in both cases."""
    easy = [a for kind in ("accuracy", "category", "language", "source") for a in ("--aim", f"{kind}=0")]
    for aims, code in ((["--aim", "accuracy=1.0"], 3), ([*easy, "--aim", "ece=1"], 0)):
        done = email_trm("evaluate", held_out, "--model", "run", "--gate", *aims, "--output", "gated.json", cwd=folder)
        assert done.returncode == code, done.stderr.decode()
        assert json.loads((folder / "gated.json").read_text(encoding="utf-8"))["gates"]
        (folder / "gated.json").unlink()
    assert email_trm("evaluate", held_out, "--model", "run", "--aim", "accuracy=95", cwd=folder).returncode == 2


def test_robustness_of_the_run(folder: Path, held_out: str, repo: Path) -> None:
    """The study reads a run folder, keeps what is done, and refuses mail that is not the run's."""
    write = ["-p", "work", "w", "-p", "output", "firm", "-p", "mails", "12"]
    papermill = ["from papermill.cli import papermill; papermill()", str(repo / "nbs" / "pipelines" / "robustness.ipynb"), "out.ipynb"]
    done = run_python(*papermill, "-p", "source", "mail.jsonl", "-p", "run", "run", *write, cwd=folder)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found = json.loads((folder / "firm" / "metrics.json").read_text(encoding="utf-8"))
    assert found["synthetic"] and found["mails"] == 12 and len(found["perturbations"]) == 20
    assert "SYNTHETIC" in (folder / "firm" / "README.md").read_text(encoding="utf-8")
    other = run_python(*papermill, "-p", "source", held_out, "-p", "run", "run", *write, cwd=folder)
    assert other.returncode != 0 and b"not the mail that the run was made from" in other.stderr


# These need no finished run, so another worker can take them meanwhile.
apart = pytest.mark.xdist_group("mistakes")


@apart
@pytest.mark.parametrize(("args", "code", "words"), [
    (["predict", "nothing.jsonl"], 4, "cannot be read"),
    (["predict", "empty.jsonl"], 4, "no mail"),
    (["run", "--source", "plain.jsonl"], 4, "no category"),
    (["run", "--split", "tme"], 2, "no split of kind"),
    (["run", "--profile", "quik"], 2, "did you mean 'quick'?"),
    (["run", "--output", "taken"], 2, "exists already"),
    (["run", "--sorce", "x"], 2, "No such option"),
    (["predict", "empty.jsonl", "--model", "nowhere"], 5, "missing"),
])
def test_mistakes_have_a_message_and_a_code(folder: Path, args: list[str], code: int, words: str) -> None:
    (folder / "empty.jsonl").touch()
    (folder / "taken").mkdir(exist_ok=True)
    (folder / "plain.jsonl").write_text('{"subject": "a"}\n' * 50, encoding="utf-8")
    done = email_trm(*args, cwd=folder)
    assert done.returncode == code, done.stderr.decode()[-2000:]
    assert words in done.stderr.decode()
    assert not list(folder.glob(".*partial")) and not list(folder.glob("*.failed.ipynb"))


@apart
def test_papermill_alone_refuses_an_unknown_parameter(folder: Path, repo: Path) -> None:
    """Without our command around it, papermill would run the defaults and exit 0; the notebook itself says no."""
    template = repo / "nbs" / "pipelines" / "train_categories.ipynb"
    done = subprocess.run([sys.executable, "-m", "papermill", str(template), "out.ipynb", "-p", "sorce", "x"], cwd=folder,
        capture_output=True, timeout=120)
    assert done.returncode != 0 and b"did you mean 'source'?" in done.stderr


@apart
@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_looks_finished(folder: Path) -> None:
    """kill -9 in the middle: no run folder appears, and the same command afterwards starts afresh."""
    code = "from email_trm.cli.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, "run", "--source", "mail.jsonl", "--output", "killed"], cwd=folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (folder / ".killed.partial").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert (folder / ".killed.partial").exists()
    time.sleep(3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "killed").exists()
    from email_trm.core.runs import RunFolder

    assert not list(RunFolder(folder / "killed").work.iterdir())


def test_help_is_quick_and_quiet() -> None:
    """`--help` loads no torch, and prints no colours into a pipe."""
    code = "import sys; from email_trm.cli.cli import main\ntry: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("False") and "\x1b[" not in done.stdout


def test_speed_comes_from_halting(run: Path) -> None:
    """Stopping every mail at once is faster than never stopping, on the same mails in the same process."""
    classifier = EmailClassifier.from_pretrained(run)
    mails = [m for m in sample_mailbox(300) if m.category]

    def seconds(threshold: float) -> float:
        classifier.model.config.halt_threshold = threshold
        times = []
        for _ in range(3):
            began = time.perf_counter()
            classifier.predict(mails)
            times.append(time.perf_counter() - began)
        return min(times)

    seconds(1.1)
    assert seconds(0.0) < seconds(1.1)


def test_progress_goes_to_stderr_only(folder: Path, run: Path) -> None:
    done = email_trm("predict", "mail.jsonl", "--model", "run", cwd=folder)
    lines = list(io.BytesIO(done.stdout))
    assert len(lines) > 300 and all(line.startswith(b"{") for line in lines)
