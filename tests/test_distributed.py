"""Several processes train one model: the same as one process with all the mails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from accelerate.commands.config.config_args import load_config_from_file

from email_trm.core.errors import ConfigError
from email_trm.training.trainer import Recipe, fit

CONFIGS = Path(__file__).parents[1] / "configs/accelerate"

TRAIN = """
import json, sys
import numpy as np
from transformers import TrainerCallback
from email_trm.data.manager import EmailDatasetManager
from email_trm.data.schema import to_mails
from email_trm.training.trainer import Recipe, is_first_process, train_categories
from email_trm.trm.files import quiet
quiet()
folder, batch = sys.argv[1], int(sys.argv[2])
still = {f"{name}dropout": 0.0 for name in ("", "token_", "sender_", "subject_")} # Processes draw other numbers
shape = {"hidden_size": 32, "pair_buckets": 512, "body_tokens": 40, "L_cycles": 1, "halt_max_steps": 2, "halt_exploration_prob": 0.0}
recipe = Recipe(epochs=2, batch_size=batch, vocab_size=800, learning_rate=2e-3, ema=0.9, evidence=False, model=shape | still)
manager = EmailDatasetManager("sample").load()
parts = {p: to_mails(f) for p, f in manager.split("random", 0).parts.items()}
class Start(TrainerCallback):
    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if is_first_process(): np.save(folder + "/start.npy", np.concatenate([p.detach().numpy().ravel() for p in model.parameters()]))
trained = train_categories(parts["train"][:256], parts["validation"], manager.taxonomy.names, recipe, folder, callbacks=[Start()])
if is_first_process():
    np.save(folder + "/weights.npy", np.concatenate([p.detach().numpy().ravel() for p in trained.model.parameters()]))
    scores = [[row[k] for row in trained.history if k in row] for k in ("eval_accuracy", "eval_macro_f1")]
    open(folder + "/scores.json", "w").write(json.dumps(scores))
"""


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    """`torchrun` with two processes of 32 mails gives the scores and the weights of one process of 64."""
    script, env = tmp_path / "train.py", {**os.environ, "OMP_NUM_THREADS": "1"}
    script.write_text(TRAIN, encoding="utf-8")
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, start, batch in (("one", [sys.executable], "64"), ("two", two, "32")):
        (tmp_path / name).mkdir()
        done = subprocess.run([*start, str(script), str(tmp_path / name), batch], capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
    scores = [json.loads((tmp_path / name / "scores.json").read_text()) for name in ("one", "two")]
    one, both, start = (np.load(tmp_path / name) for name in ("one/weights.npy", "two/weights.npy", "one/start.npy"))
    assert np.abs(one - both).max() < 0.01 * np.abs(one - start).max()
    assert np.allclose(scores[0], scores[1], atol=0.03)  # A mail or two on the edge may fall to the other side


@pytest.mark.slow
def test_several_processes_train_by_command(tmp_path: Path) -> None:
    """`torchrun --no-python email-trm train`: one decides, all train, one writes."""
    script, env = tmp_path / "cli.py", {**os.environ, "OMP_NUM_THREADS": "1"}
    script.write_text("from email_trm.cli.cli import main; main()", encoding="utf-8")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    command = [*start, "train", "--size", "S", "--output", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("SYNTHETIC test part") == 1
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "finished"


def test_shards_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under FSDP or DeepSpeed the weights of a process are not the model's: a typed error says so, before any training."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="cannot be taken of shards"):
        fit(cast(Any, None), Recipe(), tmp_path)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_reads_the_configurations(path: Path) -> None:
    """Every file is one that `accelerate launch --config_file` takes, and documented."""
    found = load_config_from_file(str(path))
    assert found.num_processes >= 2
    assert f"`{path.name}`" in (CONFIGS / "README.md").read_text(encoding="utf-8")
