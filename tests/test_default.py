"""The model in the box is there, small, without pickles, and its card quotes the report."""

import json
from pathlib import Path

from safetensors import safe_open

from email_trm import EmailClassifier
from email_trm.data.schema import CATEGORIES
from email_trm.data.tokens import SPECIAL
from email_trm.serving.classifier import default_folder
from email_trm.serving.default import LARGEST

REPORT = Path(__file__).resolve().parent.parent / "reports/students/metrics.json"
MAILS = {
    "travel": {"subject": "Your flight to Ankara", "body": "Your booking is confirmed. Your flight departs at 9:40."},
    "shopping": {"subject": "Your order has shipped", "body": "Your parcel with order 4711 left our warehouse today. Track it here."},
    "finance": {"subject": "Kredi kartı ekstreniz",
        "body": "Ekim ayı ekstreniz hazır. Son ödeme tarihi 5 Kasım, toplam borç 1.250 TL."},
}  # Synthetic


def test_it_answers() -> None:
    """Without a name, `from_pretrained` loads it. Plain synthetic mails get the category anybody would give."""
    classifier = EmailClassifier.from_pretrained()
    assert sorted(classifier.categories) == sorted(CATEGORIES)
    assert [p.category for p in classifier.predict(MAILS.values())] == list(MAILS)


def test_the_folder() -> None:
    """Safetensors and JSON only, below the size promised, in half precision, markers where the code expects them."""
    folder = default_folder()
    assert {p.suffix for p in folder.iterdir()} == {".json", ".md", ".safetensors"}
    assert sum(p.stat().st_size for p in folder.iterdir()) < LARGEST * 1e6
    with safe_open(folder / "model.safetensors", "pt") as weights:
        kinds = {str(weights.get_tensor(name).dtype) for name in weights.keys()}  # noqa: SIM118 (not a dictionary)
    assert kinds == {"torch.float16", "torch.int32"}
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert [vocabulary[name] for name in SPECIAL] == list(range(len(SPECIAL)))


def test_the_card_quotes_the_report() -> None:
    """The scores on the card are those of reports/students."""
    scores = json.loads(REPORT.read_text(encoding="utf-8"))["variants"]["taught"]
    card = (default_folder() / "README.md").read_text(encoding="utf-8")
    for label, key in (("accuracy", "accuracy"), ("macro-F1", "macro_f1"), ("ECE", "ece")):
        assert f"| {label} | {scores[key]['mean']:.3f} |" in card
