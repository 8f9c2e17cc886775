"""Bundles: what happens to one on its way is noticed, nothing in it is ever run, and every engine answers the same, alone, in a batch
and in threads."""

import json
import pickle
import random
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

from email_trm import EmailClassifier
from email_trm.core.errors import ConfigError, ModelError
from email_trm.core.runs import seed_everything
from email_trm.data.tokens import collate, segment_texts, train_tokenizer
from email_trm.mail.message import Email
from email_trm.mail.sample import sample_mailbox
from email_trm.serving import bundle as bundle_module
from email_trm.serving.bundle import GRAPHS, KINDS, MANIFEST, default_folder, export_bundle, push_to_hub, seal, verify_bundle
from email_trm.serving.classifier import Prediction
from email_trm.training.trainer import encode_for
from email_trm.trm.config import EmailTRMConfig
from email_trm.trm.evidence import fit_evidence
from email_trm.trm.files import save_model
from email_trm.trm.model import EmailTRMForSequenceClassification

pytestmark = pytest.mark.xdist_group("bundle")  # The graphs are made once
HAVE_ONNX = all(map(find_spec, ("onnx", "onnxscript", "onnxruntime")))
needs_onnx = pytest.mark.skipif(not HAVE_ONNX, reason="pip install 'email-trm[onnx]': onnx, onnxscript and onnxruntime")
ENGINES = ["torch", *(pytest.param(e, marks=[needs_onnx, pytest.mark.slow]) for e in GRAPHS)]  # PyTorch takes half a minute for a graph
NAMES = ["newsletter", "work", "personal", "spam", "promotional", "social", "finance", "travel", "shopping", "other"]
EXACT = 1e-5  # Largest difference of a probability between batches, threads and float engines; the promise is 1e-4


# ---- a small model with every part: evidence, reader, halting, two temperatures ----------------------------------------------
@pytest.fixture(scope="module")
def mails() -> list[Email]:
    """Synthetic mail in English and Turkish, from empty to longer than the model reads."""
    found = [m for m in sample_mailbox() if m.category][:90]
    edge = [Email("empty"), Email("word", subject="x"),
        Email("long", subject="s " * 500, body="uzun bir mektup " * 2000, sender="a@example.org"),
        Email("odd", subject="[BODY]\u200b", body="\x00 \ud83d\ude00 İIıi", sender="<>")]
    return edge + found


@pytest.fixture(scope="module")
def folder(mails: list[Email], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a policy."""
    seed_everything(0)
    tokenizer = train_tokenizer((t for m in mails for t in segment_texts(m)), 600)
    labelled = [m for m in mails if m.category]
    labels = np.array([NAMES.index(m.category or "other") for m in labelled])
    table, _ = fit_evidence(labelled, labels, len(NAMES), np.array([m.sender for m in labelled], dtype=object), folds=2)
    model = EmailTRMForSequenceClassification(EmailTRMConfig(vocab_size=len(tokenizer), hidden_size=32, token_size=48, reader_layers=1,
        reader_heads=4, reader_tokens=24, pair_buckets=512, pair_size=8, body_tokens=60, num_hidden_layers=1, L_cycles=1,
        evidence_features=len(table.rows),
        id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)}, temperature=1.3, language_temperature={"tr": 0.8}))
    model.evidence.load_state_dict(table.state_dict())
    model.q_head.weight.data.normal_(std=2.0)
    with torch.inference_mode():
        sure = model.eval()(**collate(encode_for(model, tokenizer, mails)), max_steps=1).q_logits
    middle = sure.sort().values[len(sure) // 4:-(len(sure) // 4)]
    widest = int(middle.diff().argmax())
    assert middle[widest + 1] - middle[widest] > 1e-3  # A mail on the threshold could halt at another step for a rounding error
    model.q_head.bias.data -= middle[widest:widest + 2].mean()  # Many halt at the first step, many do not
    place = tmp_path_factory.mktemp("bundle")
    save_model(model, tokenizer, place / "run" / "model")
    (place / "run" / "model" / "README.md").write_text("# The run's card\n", encoding="utf-8")
    export_bundle(place / "run", place / "bundle", (), default_folder().parent / "actions")
    return place / "bundle"


@pytest.fixture(scope="module")
def graphs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with graphs. Tests ask for it by `getfixturevalue`, so that nobody waits for it who skips them."""
    from email_trm.trm.onnx import write_int8

    place = tmp_path_factory.mktemp("graphs") / "bundle"
    export_bundle(folder, place, ("onnx",))
    write_int8(place / GRAPHS["onnx"], place / GRAPHS["int8"], least=32)  # Smaller than what `export_bundle` finds worth it
    seal(place)
    return place


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy that may be spoiled."""
    return shutil.copytree(folder, tmp_path / "copy")


def refusal(path: Path) -> str:
    """Why loading refuses a folder. Fails if it does not, or with an error of another kind."""
    with pytest.raises(ModelError) as caught:
        EmailClassifier.from_pretrained(path)
    assert caught.value.remedy
    return caught.value.cause


def apart(left: list[Prediction], right: list[Prediction]) -> float:
    """Largest difference of a probability, after making sure that ids, categories and steps are the same."""
    assert [(p.id, p.category, p.steps, p.language) for p in left] == [(p.id, p.category, p.steps, p.language) for p in right]
    return max(abs(a.probabilities[k] - b.probabilities[k]) for a, b in zip(left, right, strict=True) for k in NAMES)


# ---- what it holds -----------------------------------------------------------------------------------------------------------
def test_contents(folder: Path, mails: list[Email]) -> None:
    """Everything is there, the list agrees with the configuration, and the folder works elsewhere."""
    listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert set(listed["files"]) == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "actions/policy.json", "actions/trees.ubj"}
    assert listed["categories"] == NAMES and listed["calibration"] == {"temperature": 1.3, "language_temperature": {"tr": 0.8}}
    assert set(listed["thresholds"]) == {"ask_threshold", "halt_threshold"} and (listed["format"], listed["email_trm"]) == (1, "0.1.0")
    assert (folder / "README.md").read_text(encoding="utf-8") == "# The run's card\n"
    run = EmailClassifier.from_pretrained(folder.parent / "run")
    assert EmailClassifier.from_pretrained(folder).predict(mails) == run.predict(mails)


def test_transformers_loads_it(folder: Path, mails: list[Email]) -> None:
    """`AutoModelForSequenceClassification` gives the same logits as our own class."""
    ours = EmailClassifier.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
    assert list(model.config.id2label.values()) == NAMES
    row = {k: torch.tensor([v]) for k, v in encode_for(ours.model, ours.tokenizer, [mails[10]])[0].items()}
    with torch.inference_mode():
        assert torch.equal(model(**row).logits, ours.model(**row).logits)


def test_save_and_load(copy: Path, mails: list[Email], tmp_path: Path) -> None:
    """`save_pretrained` and `from_pretrained` are a round trip. Saved over a bundle, no list and no graph of the older model stays."""
    (copy / GRAPHS["onnx"]).touch()
    seal(copy)
    one = EmailClassifier.from_pretrained(copy)
    one.save_pretrained(tmp_path / "saved")
    assert EmailClassifier.from_pretrained(tmp_path / "saved").predict(mails) == one.predict(mails)
    one.model.config.temperature = 2.0
    one.save_pretrained(copy)
    assert not {MANIFEST, *GRAPHS.values()} & {p.name for p in copy.iterdir()}
    assert EmailClassifier.from_pretrained(copy).predict(mails) == one.predict(mails)


def test_actions(folder: Path, tmp_path: Path) -> None:
    """The bundle's policy answers; without one that of the box does. A bundle made of a bundle keeps its policy."""
    mailbox = sample_mailbox(150)
    export_bundle(folder, tmp_path / "again")
    export_bundle(folder.parent / "run", tmp_path / "bare")
    found = [EmailClassifier.from_pretrained(p) for p in (tmp_path / "again", tmp_path / "bare")]
    assert [c.policy_folder for c in found] == [tmp_path / "again" / "actions", None]
    tables = [c.predict_actions(mailbox) for c in found]
    assert len(tables[0]) > 50 and tables[0].equals(tables[1])  # The same policy, by two ways
    assert found[0].policy is found[0].policy


# ---- what can happen to it ---------------------------------------------------------------------------------------------------
def change(path: Path, how: Callable[[bytearray], bytes]) -> None:
    """Replace a file's bytes."""
    path.write_bytes(how(bytearray(path.read_bytes())))


def flipped(data: bytearray, at: int) -> bytes:
    """One bit turned over."""
    data[at] ^= 1 << (at % 8)
    return bytes(data)


def test_every_file_every_damage(copy: Path) -> None:
    """Whatever file is cut, emptied, lost, lengthened or changed in one bit, loading refuses and names it."""
    rng, whole = random.Random(0), {n: (copy / n).read_bytes() for n in verify_bundle(copy)["files"]}
    assert len(whole) >= 7
    for name, data in whole.items():
        path = copy / name
        flips = (flipped(bytearray(data), rng.randrange(len(data))) for _ in range(5))
        damages = [data[:-1], data[:len(data) // 2], b"", data + b"\n", *flips]
        for damaged in damages:
            path.write_bytes(damaged)
            assert f"copy/{name} " in refusal(copy)
        path.unlink()
        assert f"{name} is missing" in refusal(copy)
        path.write_bytes(data)
    verify_bundle(copy)


def test_swapped_files(copy: Path) -> None:
    """Two whole files in each other's places are noticed."""
    one, two = copy / "tokenizer_config.json", copy / "config.json"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert "config.json" in refusal(copy)


@pytest.mark.parametrize(("text", "said"), [
    ("", "damaged"), ("null", "damaged"), ("[]", "damaged"), ("{}", "damaged"), ("[" * 100_000, "damaged"), ("\x00", "damaged"),
    ('{"format": "1", "files": {}}', "damaged"), ('{"format": true, "files": {}}', "damaged"), ('{"format": 1, "files": []}', "damaged"),
    ('{"format": 2, "files": {}}', "has format 2"), ('{"format": 0, "files": {}}', "has format 0"),
    ('{"format": 1, "files": {}}', "is not on the list"), ('{"format": 1, "files": {"../run/model/config.json": {}}}', "is missing"),
    ('{"format": 1, "files": {"config.json": null}}', "is not on the list"),
    ('{"format": 1, "files": {"README.md": {"bytes": "17", "sha256": 0}}}', "bytes"),
])
def test_lists_that_lie(copy: Path, text: str, said: str) -> None:
    """No list, however odd, is anything but a refusal with a reason."""
    (copy / MANIFEST).write_text(text, encoding="utf-8")
    assert said in refusal(copy)


def test_a_torn_list(copy: Path) -> None:
    """The list cut anywhere, and bytes that are no UTF-8."""
    data = (copy / MANIFEST).read_bytes()
    for end in range(0, len(data.rstrip()), 97):
        (copy / MANIFEST).write_bytes(data[:end])
        assert "damaged" in refusal(copy)
    (copy / MANIFEST).write_bytes(b"\xff" + data)
    assert "damaged" in refusal(copy)


class Mine:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["model.bin", "model.pkl", ".hidden.pkl", "pytorch_model.bin", "run.py", "actions/x.so", "no_suffix",
    ".cache/x.pkl", "more.json", "more.md", "actions/more.ubj", ".gitattributes.py/x.json"])
def test_strangers_are_refused(copy: Path, name: str) -> None:
    """Files that are not on the list are refused, whatever they are called; kinds that do not belong there even before."""
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(pickle.dumps({"a": 1}))
    assert name in refusal(copy)
    if Path(name).suffix not in KINDS:
        with pytest.raises(ModelError, match="no part of a model"):
            seal(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json", "actions/trees.ubj",
    "actions/policy.json", *GRAPHS.values()])
def test_nothing_is_unpickled(copy: Path, tmp_path: Path, name: str) -> None:
    """Somebody who writes a new list can replace a file by a pickle. It is still refused, and its code does not run."""
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Mine(mark)))
    assert mark.exists()  # It would run
    mark.unlink()
    (copy / name).write_bytes(pickle.dumps(Mine(mark)))
    if name == "config.json":
        (copy / MANIFEST).unlink()
    else:
        seal(copy)
    with pytest.raises((ModelError, ConfigError)):
        engine = next((e for e, graph in GRAPHS.items() if graph == name), "torch")
        found = EmailClassifier.from_pretrained(copy, engine=engine)
        assert found.policy  # Refuses if the others were not asked to
    assert not mark.exists()


def test_no_remote_code(copy: Path, tmp_path: Path) -> None:
    """A configuration that names a class in a file beside it does not get it run."""
    (copy / MANIFEST).unlink()
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    both = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}}
    (copy / "config.json").write_text(json.dumps(config | both), encoding="utf-8")
    EmailClassifier.from_pretrained(copy)
    AutoModelForSequenceClassification.from_pretrained(copy, local_files_only=True)
    assert not (tmp_path / "ran").exists()


# ---- nothing pickled anywhere ------------------------------------------------------------------------------------------------
def suspicious(path: Path) -> str:
    """Why a file's first bytes are no data: a pickle, an archive (as torch.save writes), a program. Empty if they are data."""
    with path.open("rb") as file:
        head = file.read(8)
    kinds = {"a pickle": (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "an archive": (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ"),
        "a program": (b"\x7fELF", b"MZ", b"#!", b"\xcf\xfa\xed\xfe"), "an array that may hold objects": (b"\x93NUMPY",)}
    return next((kind for kind, magics in kinds.items() if head.startswith(magics)), "")


def test_model_folders_hold_data_only(folder: Path, repo: Path) -> None:
    """Every file of the models in the package and of a bundle is of a known kind, and its bytes are of that kind."""
    paths = [p for place in (repo / "email_trm" / "models", folder) for p in place.rglob("*") if p.is_file()]
    assert len(paths) >= 15
    for path in paths:
        assert path.suffix in KINDS and not suspicious(path), path.name
        assert not path.stat().st_mode & 0o111, path.name
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        if path.suffix == ".safetensors":
            with safe_open(path, "np") as weights:
                assert weights.keys()


def test_repository_holds_no_pickle(repo: Path) -> None:
    """No committed file is a pickle or something that torch.load or joblib would read."""
    known = subprocess.run(["git", "ls-files", "-z"], cwd=repo, capture_output=True, check=False)
    if known.returncode:
        pytest.skip("no git checkout")
    paths = [repo / name for name in known.stdout.decode().split("\0") if name and (repo / name).is_file()]
    assert len(paths) > 200
    ends = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz", ".dill", ".h5"}
    assert [p.name for p in paths if p.suffix in ends or suspicious(p) in ("a pickle", "an array that may hold objects")] == []


def test_the_scan_can_fail(tmp_path: Path) -> None:
    """What the scan is for is found."""
    torch.save({"a": torch.ones(1)}, tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(pickle.dumps({}))
    np.save(tmp_path / "c.npy", np.ones(1))
    (tmp_path / "d.json").write_text("{}", encoding="utf-8")
    found = {p.name: suspicious(p) for p in tmp_path.iterdir()}
    assert found == {"a.json": "an archive", "b.json": "a pickle", "c.npy": "an array that may hold objects", "d.json": ""}


# ---- making one --------------------------------------------------------------------------------------------------------------
def test_interrupted_export(folder: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that dies leaves what was there before, whole, and nothing half done."""
    def full(*_: object) -> None: raise OSError(28, "no space left")

    before = verify_bundle(copy)
    monkeypatch.setattr(bundle_module, "seal", full)
    for target in (copy, copy.parent / "other"):
        with pytest.raises(OSError, match="no space"):
            export_bundle(folder, target, overwrite=True)
    assert [p.name for p in copy.parent.iterdir()] == ["copy"] and verify_bundle(copy) == before


def test_what_is_in_the_way(folder: Path, copy: Path, tmp_path: Path) -> None:
    """Only bundles are replaced, and only when asked to. A damaged bundle is not exported again."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    for target, overwrite in ((tmp_path / "mine", True), (copy, False)):
        with pytest.raises(ConfigError, match="exists"):
            export_bundle(folder, target, overwrite=overwrite)
    assert (tmp_path / "mine" / "letter.txt").exists()
    with pytest.raises(ConfigError, match="did you mean"):
        export_bundle(folder, tmp_path / "new", ("onx",))
    change(copy / "model.safetensors", lambda d: flipped(d, len(d) - 1))
    with pytest.raises(ModelError, match="changed"):
        export_bundle(copy, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---- giving it away: only to this machine ------------------------------------------------------------------------------------
@pytest.fixture
def hub() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A server on this machine that refuses everything, its address, and what it was asked."""
    asked: list[tuple[str, str, bytes]] = []

    class Refuse(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append((self.command, self.path, self.rfile.read(int(self.headers.get("Content-Length") or 0))))
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *_: object) -> None: pass

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_offline_nothing_is_sent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, as the command line is, sending is refused before a connection is tried."""
    tried: list[object] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: tried.append(address))
    with pytest.raises(ModelError, match="could not be written") as caught:
        push_to_hub(folder, "ada/mail")
    assert "HF_HUB_OFFLINE" in caught.value.remedy and not tried


def test_a_hub_that_refuses(copy: Path, hub: tuple[str, list], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first question is for a private repository. Refused, nothing of the model follows. A damaged bundle is not even asked for."""
    address, asked = hub
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ModelError, match="could not be written"):
        EmailClassifier.from_pretrained(copy).push_to_hub("ada/mail")
    assert asked[0][:2] == ("POST", "/api/repos/create") and json.loads(asked[0][2])["visibility"] == "private"
    assert all(method == "GET" and not body for method, _, body in asked[1:])  # Whether there is such a repository
    asked.clear()
    change(copy / "config.json", lambda d: flipped(d, 3))
    with pytest.raises(ModelError, match="changed"):
        push_to_hub(copy, "ada/mail")
    assert not asked


# ---- one answer --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("engine", ENGINES)
def test_alone_or_in_a_batch(request: pytest.FixtureRequest, mails: list[Email], engine: str) -> None:
    """A mail's category, steps and language are the same alone, in any batch and in any order; probabilities to `EXACT`."""
    one = EmailClassifier.from_pretrained(request.getfixturevalue("folder" if engine == "torch" else "graphs"), engine=engine)
    crowd = one.predict(mails)
    assert len({p.category for p in crowd}) > 2 and {"en", "tr"} <= {p.language for p in crowd}
    assert engine == "int8" or len({p.steps for p in crowd}) > 1  # Without training, 8 bits move all of them over the threshold
    assert apart([one.predict(m)[0] for m in mails], crowd) < EXACT
    assert apart(one.predict(mails[::-1], batch_size=7)[::-1], crowd) < EXACT
    assert apart(list(one.stream(iter(mails), batch_size=2)), crowd) < EXACT
    assert all(abs(sum(p.probabilities.values()) - 1) < 1e-9 for p in crowd)
    assert np.array_equal(one.predict_proba(mails), [list(p.probabilities.values()) for p in crowd])


@pytest.mark.parametrize("engine", ENGINES)
def test_threads(request: pytest.FixtureRequest, mails: list[Email], engine: str) -> None:
    """Eight threads at once, with mails and batches of every length, get what one after another gets."""
    one = EmailClassifier.from_pretrained(request.getfixturevalue("folder" if engine == "torch" else "graphs"), engine=engine)
    crowd = one.predict(mails)
    jobs = [[i] for i in range(len(mails))] + [list(range(i, len(mails), 9)) for i in range(9)]
    random.Random(0).shuffle(jobs)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: one.predict([mails[i] for i in job]), jobs))
    for job, answers in zip(jobs, found, strict=True):
        assert apart(answers, [crowd[i] for i in job]) < EXACT


@needs_onnx
@pytest.mark.slow
def test_the_graph_answers_as_the_model(request: pytest.FixtureRequest, mails: list[Email], monkeypatch: pytest.MonkeyPatch) -> None:
    """Same categories and steps, probabilities within 1e-4 (in fact `EXACT`) at every halting threshold; PyTorch's network is not run."""
    folder: Path = request.getfixturevalue("graphs")
    for halt in (None, 0.0, 0.3, 1.0):
        ours = EmailClassifier.from_pretrained(folder, halt=halt).predict(mails)
        graph = EmailClassifier.from_pretrained(folder, engine="onnx", halt=halt)
        with monkeypatch.context() as patched:
            patched.setattr(EmailTRMForSequenceClassification, "forward", None)
            patched.setattr(type(graph.model.trm), "encode", None)
            assert apart(graph.predict(mails), ours) < EXACT


@needs_onnx
@pytest.mark.slow
def test_the_box_as_a_graph(tmp_path: Path, mails: list[Email]) -> None:
    """The model in the box: 1e-4 for the exact graph; the one in 8 bits stays near, and answers the same alone and in a batch."""
    export_bundle(None, tmp_path / "box", ("onnx", "int8"))
    ours, graph, small = (EmailClassifier.from_pretrained(tmp_path / "box", engine=e) for e in ("torch", "onnx", "int8"))
    bodies = ["Your invoice is ready. " * n for n in range(1, 40)] + ["Faturanız hazır. " * n for n in range(1, 40)]
    every = [*mails, *(replace(mails[5], id=str(i), body=body, language=None) for i, body in enumerate(bodies))]
    wanted = ours.predict(every)
    assert apart(graph.predict(every), wanted) < 1e-4
    assert np.abs(small.predict_proba(every) - ours.predict_proba(every)).max() < 0.15
    assert [small.predict(m)[0] for m in every] == small.predict(every)


@needs_onnx
@pytest.mark.slow
def test_damaged_graphs(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A graph cut short or changed is refused by the list; without a list, by ONNX Runtime, and said in our words."""
    copy = shutil.copytree(request.getfixturevalue("graphs"), tmp_path / "copy")
    change(copy / GRAPHS["onnx"], lambda d: bytes(d[:len(d) // 2]))
    assert "copy/model.onnx has" in refusal(copy)
    (copy / MANIFEST).unlink()
    with pytest.raises(ModelError, match="no usable graph"):
        EmailClassifier.from_pretrained(copy, engine="onnx")


def test_engines_that_are_missing(folder: Path) -> None:
    """A bundle without the graph says how to get one. An unknown engine gets a suggestion."""
    with pytest.raises(ModelError, match=r"holds no model\.onnx"):
        EmailClassifier.from_pretrained(folder, engine="onnx")
    with pytest.raises(ConfigError, match="did you mean 'onnx'"):
        EmailClassifier.from_pretrained(folder, engine="onxx")
