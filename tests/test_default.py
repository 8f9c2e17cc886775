"""The model in the box is there, small, without pickles, and its card quotes the report."""

import json
from pathlib import Path

from safetensors import safe_open

from email_trm import EmailClassifier
from email_trm.data.schema import CATEGORIES
from email_trm.data.tokens import SPECIAL
from email_trm.serving.bundle import default_folder
from email_trm.serving.default import LARGEST, quoted_results

REPORT = Path(__file__).resolve().parent.parent / "reports/benchmark/metrics.json"
ENGLISH = [
    ("travel", "Your flight to Ankara", "Your booking is confirmed. Your flight departs at 9:40."),
    ("shopping", "Your order has shipped", "Your parcel with order 4711 left our warehouse today. Track it here."),
    ("finance", "Your invoice for October", "Your statement is ready. Total due: 1,250 USD, payable by 5 November."),
]  # Synthetic
TURKISH = [
    ("finance", "Kredi kartı ekstreniz", "Ekim ayı ekstreniz hazır. Son ödeme tarihi 5 Kasım, toplam borç 1.250 TL."),
    ("finance", "Fatura bilgilendirme", "Kasım ayı faturanız 350 TL, son ödeme tarihi 20 Kasım. Otomatik ödeme talimatı var."),
    ("work", "Maaş bordronuz", "Kasım ayı maaş bordronuz ektedir. İnsan kaynakları"),
    ("travel", "Uçuş bilgileriniz", "İstanbul - Ankara uçuşunuz için check-in açıldı. PNR: ABC123"),
    ("shopping", "Siparişiniz kargoya verildi", "Siparişiniz bugün kargoya verildi. Takip numaranız 123456."),
    ("personal", "Yarın akşam yemeği", "Canım yarın akşam yemeğe geliyor musun? Annem de gelecek."),
]  # Synthetic


def right(mails: list[tuple[str, str, str]]) -> int:
    """Mails that the model in the box gets right."""
    classifier = EmailClassifier.from_pretrained()
    assert sorted(classifier.categories) == sorted(CATEGORIES)
    answers = classifier.predict([{"subject": subject, "body": body} for _, subject, body in mails])
    return sum(answer.category == category for answer, (category, _, _) in zip(answers, mails, strict=True))


def test_it_answers() -> None:
    """Without a name, `from_pretrained` loads it. Plain English mails get the category anybody would give, most Turkish ones do."""
    assert right(ENGLISH) == len(ENGLISH)
    assert right(TURKISH) >= 4  # Turkish is a tenth of what it learned from


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
    """The scores on the card are those of reports/benchmark."""
    assert quoted_results(REPORT) in (default_folder() / "README.md").read_text(encoding="utf-8")
    assert "| macro-F1 | 0." in quoted_results(REPORT)
