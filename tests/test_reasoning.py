"""The reasoning study: controls that are what they say, exits that cost what they say, resuming, a verdict that follows its numbers."""
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import papermill
import pytest
import torch

from email_trm.core.errors import ConfigError
from email_trm.evaluation import halting, reasoning
from email_trm.evaluation.reasoning import Variant, contrasts, core_macs, core_parameters, study_variants, verdict_text
from email_trm.mail.sample import sample_mailbox
from email_trm.training.teacher import Lesson
from email_trm.training.trainer import Recipe
from email_trm.trm.config import EmailTRMConfig
from email_trm.trm.model import EmailTRMForSequenceClassification

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "nbs" / "pipelines" / "reasoning.ipynb"
SHAPE = {"vocab_size": 200, "hidden_size": 32, "pair_buckets": 0, "num_labels": 4, "halt_max_steps": 3, "body_windows": (8, 20)}


def net(kind: type[EmailTRMForSequenceClassification] = EmailTRMForSequenceClassification, **changes: Any) -> Any:
    """A small net of some kind, in evaluation mode."""
    torch.manual_seed(0)
    return kind(EmailTRMConfig(**SHAPE | changes)).eval()


# ---- controls --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cycles", [1, 2])
def test_untied_net_shares_nothing_and_costs_the_same(cycles: int) -> None:
    """Each layer is called once in a thought, gets gradient, and shares no memory; multiply-adds equal those of the recursive net."""
    tied, untied = net(H_cycles=cycles), net(reasoning.UntiedClassifier, H_cycles=cycles)
    assert core_macs(tied, 3) == core_macs(untied, 3) > 0
    places = [p.data_ptr() for p in untied.trm.layers.parameters()]
    assert len(set(places)) == len(places)
    calls = [0] * len(untied.trm.layers)

    def count(number: int) -> Any:
        def hook(*_: Any) -> None:
            calls[number] += 1
        return hook

    for number, layer in enumerate(untied.trm.layers):
        layer.register_forward_hook(count(number))
    x = torch.randn(2, untied.config.num_slots, 32)
    for run in (1, 2):  # a second thought starts anew
        sum(t.logits.sum() for t in untied.think(x, threshold=1.1)).backward()
        assert calls == [run] * (3 * cycles * 3 * 2)  # steps, rounds, two of z and one of y, two layers
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in untied.trm.layers.parameters())


def test_untied_net_answers_alike_when_its_weights_are_alike() -> None:
    """With the recursive net's weights copied into every layer, the untied net gives the recursive net's answers."""
    tied, untied = net(), net(reasoning.UntiedClassifier)
    size = len(tied.trm.layers)
    for number, layer in enumerate(untied.trm.layers):
        layer.load_state_dict(tied.trm.layers[number % size].state_dict())
    for name in ("classifier", "q_head"):
        getattr(untied, name).load_state_dict(getattr(tied, name).state_dict())
    for name in ("y_init", "z_init"):
        getattr(untied.trm, name).copy_(getattr(tied.trm, name))
    x = torch.randn(2, tied.config.num_slots, 32)
    with torch.inference_mode():
        for a, b in zip(tied.think(x, threshold=1.1), untied.think(x, threshold=1.1), strict=True):
            torch.testing.assert_close(a.logits, b.logits)


def test_flat_net_has_equal_parameters_and_no_memory() -> None:
    """Within 2 % of the recursive net; one use of the layers; the memory changes nothing."""
    tied, flat = net(), net(reasoning.FlatClassifier, halt_max_steps=1)
    assert math.isclose(core_parameters(tied), core_parameters(flat), rel_tol=0.02)
    assert math.isclose(tied.num_parameters(), flat.num_parameters(), rel_tol=0.02)
    x = torch.randn(2, flat.config.num_slots, 32)
    with torch.inference_mode():
        before = next(iter(flat.think(x))).logits
        flat.trm.y_init.add_(1.0)
        flat.trm.z_init.add_(1.0)
        torch.testing.assert_close(before, next(iter(flat.think(x))).logits)


def test_options_act_in_training_only() -> None:
    """Noise and random depth change training; what the net answers afterwards is free of chance."""
    noisy, random = net(reasoning.NoisyClassifier, dropout=0.0), net(reasoning.RandomDepthClassifier, dropout=0.0)
    x = torch.randn(2, noisy.config.num_slots, 32)

    def last(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            return [t.logits for t in model.think(x, threshold=1.1)][-1]

    torch.testing.assert_close(last(noisy), last(noisy))
    assert not torch.allclose(last(noisy.train()), last(noisy.train()))
    with torch.inference_mode():
        assert len(list(random.think(x, threshold=1.1))) == 3
        assert {len(list(random.train().think(x, threshold=1.1))) for _ in range(40)} == {1, 2, 3}


def test_progressive_reader_keeps_evidence_for_last() -> None:
    """Linear evidence changes no answer before the last body window is read."""
    reader = net(reasoning.ProgressiveClassifier, evidence_features=5, halt_max_steps=4)
    x = torch.randn(1, reader.config.num_slots, 32)
    answers = []
    with torch.inference_mode():
        for said in (torch.zeros(1, 4), torch.tensor([[3.0, 0.0, -2.0, 0.0]])):
            slots = torch.cat([x, reader.evidence_slot(said).unsqueeze(1)], 1)
            answers.append([t.logits for t in reader.think(slots, threshold=1.1, evidence=said)])
    same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(*answers, strict=True)]
    assert same == [True, True, False, False]


# ---- exits -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [2, 3, 8])
def test_random_exit_has_the_mean_asked_for(steps: int) -> None:
    """Also at both ends; outside there is no such exit."""
    rng = np.random.default_rng(0)
    for mean in np.linspace(1, steps, 7):
        at = halting.random_exit(float(mean), steps, 5000, rng)
        assert at.min() >= 0 and at.max() < steps
        assert at.mean() + 1 == pytest.approx(mean, abs=0.01)
    for mean in (0.9, steps + 0.1):
        with pytest.raises(ConfigError, match="mean_steps"):
            halting.random_exit(mean, steps, 10, rng)


def test_no_rule_beats_the_oracle_and_all_meet_at_the_ends() -> None:
    """At one step, and at all of them, every rule that keeps the last answer gives the same."""
    logits, q, labels = halting.synthetic_steps(200, 4)
    curves = halting.policy_curves(logits, q, labels)
    for mean in (1.0, 2.2, 4.0):
        accuracy = halting.at_equal_steps(curves, mean)["accuracy"]
        assert accuracy["oracle"] >= accuracy.max()
        if mean in (1.0, 4.0):
            rules = accuracy.drop(["oracle", "average"])
            assert rules.max() - rules.min() < 1e-9


# ---- the study -------------------------------------------------------------------------------------------------------------
def result(name: str, steps: int, role: str, seed: int, test: list[float], validation: list[float] | None = None) -> dict[str, Any]:
    """A made-up result."""
    parts = {"test": test, "validation": validation or test}
    by_step = {part: [{"step": k, "accuracy": v, "macro_f1": v} for k, v in enumerate(values, 1)] for part, values in parts.items()}
    return {"name": name, "steps": steps, "role": role, "seed": seed, "by_step": by_step, "data": "d"}


def study(gain: float, noise: float = 0.001, seeds: int = 3) -> list[dict[str, Any]]:
    """Made-up results in which the second step is worth `gain`."""
    rows = []
    for seed in range(seeds):
        wobble = noise * (seed - 1)
        rows += [result("recursive-1", 1, "recursive", seed, [0.7, 0.69]),
            result("recursive-2", 2, "recursive", seed, [0.7 + wobble, 0.7 + gain + wobble])]
    return rows


def test_verdict_follows_the_numbers() -> None:
    """The same code says three different things of three different studies, with the numbers in the sentence."""
    said = {gain: contrasts(study(gain, noise))["recursion"]["verdict"] for gain, noise in ((0.03, 0.001), (-0.03, 0.001), (0.01, 0.02))}
    assert said == {0.03: "helps", -0.03: "does not help", 0.01: "cannot be told"}
    assert contrasts(study(0.03, seeds=1))["recursion"]["verdict"] == "cannot be told"
    text = verdict_text(contrasts(study(0.03)))
    assert text.startswith("**Recursion helps here: recursive-2 at step 2 minus recursive-1 at step 1 is +0.030") and "3 seeds" in text
    assert "not asked" in verdict_text(contrasts([r for r in study(0.03) if r["steps"] == 1]))


def test_test_mail_chooses_nothing() -> None:
    """Net and step are those that validation mail likes best, even where test mail likes others."""
    rows = [result("recursive-1", 1, "recursive", s, [0.7, 0.7]) for s in range(2)]
    rows += [result("recursive-2", 2, "recursive", s, [0.6, 0.9], [0.8, 0.7]) for s in range(2)]
    rows += [result("recursive-4", 4, "recursive", s, [0.99, 0.99], [0.6, 0.6]) for s in range(2)]
    found = contrasts(rows)["recursion"]
    assert (found["ours"], found["step"]) == ("recursive-2", 1)
    assert found["macro_f1"]["mean"] == pytest.approx(-0.1)


def test_a_stopped_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was finished is not trained again, half a training is, and other mail or another recipe is refused."""
    mails = [m for m in sample_mailbox(60) if m.category][:30]
    data, how, plan = Lesson(mails[:10], mails[10:20], mails[20:], [], ["work"]), Recipe(), study_variants([2], "flat")
    trained: list[str] = []

    def pretend(data: Lesson, taught: Any, variant: Variant, how: Recipe, seed: int, inference: int, stem: Path) -> dict[str, Any]:
        if len(trained) == 4 and "-s1" in stem.name and not monkeypatched:
            stem.with_name(f"{stem.name}.npz").write_bytes(b"half")
            raise KeyboardInterrupt
        trained.append(stem.name)
        return result("", variant.steps, variant.role, seed, [0.5] * inference)

    monkeypatched: list[bool] = []
    monkeypatch.setattr(reasoning, "measure_variant", pretend)
    with pytest.raises(KeyboardInterrupt):
        reasoning.run_study(data, None, plan, how, [0, 1], tmp_path, 2, lambda line: None)
    assert trained == ["recursive-1-s0", "recursive-2-s0", "flat-s0", "recursive-1-s1"]
    monkeypatched.append(True)
    trained.clear()
    rows = reasoning.run_study(data, None, plan, how, [0, 1], tmp_path, 2, lambda line: None)
    assert trained == ["recursive-2-s1", "flat-s1"]
    assert [(r["name"], r["seed"]) for r in rows] == [(n, s) for s in (0, 1) for n in ("recursive-1", "recursive-2", "flat")]
    for other in ((Lesson(mails[:9], mails[10:20], mails[20:], [], ["work"]), how), (data, Recipe(epochs=1))):
        with pytest.raises(ConfigError, match="another recipe"):
            reasoning.run_study(other[0], None, plan, other[1], [0], tmp_path, 2, lambda line: None)


# ---- the pipeline ----------------------------------------------------------------------------------------------------------
def test_pipeline_on_the_sample(tmp_path: Path) -> None:
    """The whole line on synthetic mail, tiny; the report has numbers, pictures with words for them, and a verdict."""
    given = {"split": "random", "seeds": "0", "supervision": "1,2", "variants": "flat", "inference": 3, "mails": 80,
        "settings": {"epochs": 1, "batch_size": 32, "vocab_size": 800, "evidence": False, "model": {"hidden_size": 32, "pair_buckets": 512,
            "body_tokens": 30, "sender_tokens": 8, "subject_tokens": 12, "body_windows": [8, 20]}},
        "work": str(tmp_path / "work"), "output": str(tmp_path / "report")}
    known = papermill.inspect_notebook(str(TEMPLATE))
    assert set(given) < set(known)
    papermill.execute_notebook(str(TEMPLATE), str(tmp_path / "out.ipynb"), given, progress_bar=False)
    names = {p.name for p in (tmp_path / "report").iterdir()}
    assert names == {"README.md", "metrics.json", "depth.png", "differences.png", "policies.png", "changes.png", "steps_by.png"}
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["synthetic"] is True and metrics["contrasts"]["recursion"]["verdict"] == "cannot be told"
    page = (tmp_path / "report" / "README.md").read_text(encoding="utf-8")
    assert "synthetic" in page and "cannot be told" in page and "@" not in page
    assert all(f"]({name})" in page for name in names if name.endswith(".png"))
    assert {p.name for p in (tmp_path / "work").iterdir()} == {f"{n}-s0.{end}" for n in ("recursive-1", "recursive-2", "flat")
        for end in ("npz", "json")}
