"""Several processes train one model: the same as one process with all the mails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.commands.config.config_args import load_config_from_file

CONFIGS = Path(__file__).parents[1] / "configs/accelerate"

TRAIN = """
import json, sys
import numpy as np
from email_trm.data.manager import EmailDatasetManager
from email_trm.data.schema import to_mails
from email_trm.training.trainer import Recipe, is_first_process, train_categories
from email_trm.trm.files import quiet
quiet()
folder, batch = sys.argv[1], int(sys.argv[2])
still = {f"{name}dropout": 0.0 for name in ("", "token_", "sender_", "subject_")} # Processes draw other numbers
shape = {"hidden_size": 32, "pair_buckets": 512, "body_tokens": 40, "L_cycles": 1, "halt_max_steps": 2, "halt_exploration_prob": 0.0}
recipe = Recipe(epochs=2, batch_size=batch, vocab_size=800, learning_rate=3e-3, ema=0.9, evidence=False, model=shape | still)
manager = EmailDatasetManager("sample").load()
parts = {p: to_mails(f) for p, f in manager.split("random", 0).parts.items()}
trained = train_categories(parts["train"][:256], parts["validation"], manager.taxonomy.names, recipe, folder)
if is_first_process():
    np.save(folder + "/weights.npy", np.concatenate([p.detach().numpy().ravel() for p in trained.model.parameters()]))
    scores = [[row[k] for row in trained.history if k in row] for k in ("eval_accuracy", "eval_macro_f1", "eval_loss")]
    open(folder + "/scores.json", "w").write(json.dumps(scores))
"""


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
    assert scores[0][:2] == scores[1][:2]
    assert scores[0][2] == pytest.approx(scores[1][2], abs=1e-4)
    one, both = (np.load(tmp_path / name / "weights.npy") for name in ("one", "two"))
    assert np.abs(one - both).max() < 1e-3
    assert scores[0][1][-1] > 0.03  # It learned something: two trainings that stand still are alike as well


def test_shards_are_refused(tmp_path: Path) -> None:
    """Under FSDP or DeepSpeed the weights of a process are not the model's: a typed error says so, before any training."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_FSDP": "true"}
    script = tmp_path / "train.py"
    script.write_text(TRAIN, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script), str(tmp_path), "64"], capture_output=True, text=True, check=False, env=env)
    assert done.returncode and "cannot be taken of shards" in done.stderr


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_reads_the_configurations(path: Path) -> None:
    """Every file is one that `accelerate launch --config_file` takes, and documented."""
    found = load_config_from_file(str(path))
    assert found.num_processes >= 2
    assert f"`{path.name}`" in (CONFIGS / "README.md").read_text(encoding="utf-8")
