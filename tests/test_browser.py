"""Reports in a real browser: silent, self-contained, readable on a phone, in light and in dark. And the checks can fail."""
import json
import shutil
from pathlib import Path

import pytest
from browser import check_pages, complaints, find_chromium, visit

from email_trm.data.quality import examine, quality_report
from email_trm.data.schema import to_frame
from email_trm.data.splits import split
from email_trm.evaluation.data_report import draw_data, render_data_report
from email_trm.evaluation.metrics import score, synthetic_predictions
from email_trm.evaluation.pages import Tile, markdown_page, provenance_of, write_pages
from email_trm.evaluation.plots import describe, draw_split
from email_trm.evaluation.reports import render_report
from email_trm.mail.sample import sample_mailbox

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["work", "personal", "newsletter", "finance", "spam"]
REPORTS = ("actions", "augmentation", "benchmark", "explanations", "import", "reliability", "students")


@pytest.fixture(scope="session")
def chromium() -> str:
    """A browser; tests that need one are skipped where there is none."""
    found = find_chromium()
    if not found:
        pytest.skip("no Chromium or Chrome here: pages were not opened in a browser")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of SYNTHETIC predictions, for pages."""
    found = tmp_path_factory.mktemp("pages")
    draw_split(synthetic_predictions(NAMES), NAMES, found, "random", synthetic=True)
    return found


def category_report(folder: Path) -> str:
    """The report of a run that never was, on SYNTHETIC predictions."""
    frame = synthetic_predictions(NAMES)
    images = {p.stem: p for p in sorted(folder.glob("*_random.png"))}
    alts = {f"{k}_random": v for k, v in describe(frame, NAMES).items()}
    bare = frame.drop(columns=["confidence", "steps", *(f"p_{n}" for n in NAMES)])
    ours = {"random": score(frame, NAMES) | {"train_seconds": 12.0}, "group": score(synthetic_predictions(NAMES, seed=1), NAMES)}
    peer = {"random": score(bare, NAMES)}
    table = {n: {"en": 40, "tr": 10} for n in NAMES}
    metrics = {"run": {"name": "synthetic example", "seed": 0, "command": "papermill --long " * 9, "duration_s": 9},
        "data": {"source": "sample", "synthetic": True, "n": 800, "by_category_language": table, "splits": {"random": {"train": 600}}},
        "models": {"EmailTRM": ours, "tfidf_linear_svc": peer}, "categories": NAMES, "versions": {"python": "3.11"}}
    return render_report(json.loads(json.dumps(metrics)), images, alts)


def text_report(folder: Path) -> str:
    """A page from Markdown, with all that Markdown has."""
    words = "| model with a name that is long | accuracy | a | b | c | d | remark |\n|---|---|---|---|---|---|---|\n"
    row = "| {} | 0.79 (0.77 to 0.80) | 1 | 2 | 3 | 4 | a remark of a good many words, which must wrap |\n"
    text = (f"# Synthetic mail\n\nA [link](other.md), `code_{'x' * 90}`, **words**.\n\n{words}{row.format('ours')}{row.format('his')}\n"
        "## A picture\n\n![What is taken for what](confusion_random.png)\n\n> A quote.\n\n1. one\n2. two\n\n"
        f"```\n{'long ' * 60}\n```\n\n---\n\n### Below\n")
    tiles = [Tile("0.79", "accuracy", "good"), Tile("−3.1", "points behind", "bad"), Tile("0 of 100,000", "failures"), Tile("45 ms", "a")]
    end = provenance_of({"seeds": [0, 1], "split": "group", "versions": {"python": "3.11"}, "machine": {"cores": 2}}, "make it")
    return markdown_page(text, folder, tiles=tiles, lead="Of 100 mails, 79 land right.", provenance=end, synthetic=True)


def dataset_report(folder: Path) -> str:
    """The data report of the SYNTHETIC sample."""
    sample = to_frame([m for m in sample_mailbox() if m.category])
    cut = split(sample, "random")
    data = quality_report(sample, examine(sample), {"random": cut.parts}, per_category=60)
    images, alts = draw_data(data, sample["body"].str.len(), folder, 60, synthetic=True)
    metrics = {"run": {"name": "synthetic example", "seed": 0}, "versions": {"python": "3.11"}, "machine": {"cores": 2},
        "data": {"source": "sample", "synthetic": True, "splits": {"random": cut.record()}, **data}}
    return render_data_report(metrics, images, alts)


MADE = {"categories": category_report, "text": text_report, "data": dataset_report}


def test_pages(folder: Path, chromium: str) -> None:
    """A report of each kind, and the pages made from the committed reports, are without fault in a browser."""
    paths = [folder / f"{kind}.html" for kind in MADE]
    for path in paths:
        path.write_text(MADE[path.stem](folder), encoding="utf-8")
    for name in REPORTS:
        if (ROOT / "reports" / name / "metrics.json").exists():
            shutil.copytree(ROOT / "reports" / name, folder / name)
            paths += write_pages(folder / name)
    assert len(paths) > len(MADE)
    assert {path: wrong for path, wrong in check_pages(paths, chromium=chromium).items() if wrong} == {}


# ---- the checks can fail ---------------------------------------------------------------------------------------------------
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A page</title><style>{}</style></head>
<body><h1>Title</h1><p>Words.</p>{}</body></html>"""
PICTURE = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
GREY = ":root { color-scheme: light dark } p { color: #444 } @media (prefers-color-scheme: dark) { body { background: #111; color: #eee } }"
WRONG = {  # name -> style, body, what must be said
    "console": ("", '<script>console.error("boom"); console.warn("careful")</script>', ["boom", "careful"]),
    "words": ("", f'<img src="{PICTURE}"><img src="{PICTURE}" alt=" "><h1>Again</h1>', ["2 pictures without words", "2 h1 headings"]),
    "room": ("p { width: 500px; margin: 0 } body { margin: 0 }",
        '<table><tr><th>a</th></tr></table><div style="overflow-x: auto"><p>Wide</p></div>',
        ["500 px wide in a window of 400 px", "1 table headings without scope", "1 boxes that scroll"]),
    "links": ("", '<a href="#gone">x</a><p id="a">x</p><p id="a">y</p>', ["links to nowhere: gone", "ids used twice: a"]),
    "grey": (GREY, "", []),
    "good": ("", "", []),
}


def wrong_page(path: Path, style: str, body: str) -> Path:
    """A small page with a fault."""
    path.write_text(PAGE.format(style, body), encoding="utf-8")
    return path


def test_checks_can_fail(tmp_path: Path, chromium: str) -> None:
    """Each fault is found, in light and in dark, and nothing else is said. Grey on black is found in dark, so dark is really dark."""
    paths = [wrong_page(tmp_path / f"{name}.html", style, body) for name, (style, body, _) in WRONG.items()]
    found = {Path(path).stem: lines for path, lines in check_pages(paths, chromium=chromium).items()}
    for name, (_, _, wanted) in WRONG.items():
        for scheme in ("light", "dark"):
            lines = [line for line in found[name] if line.startswith(scheme)]
            expected = ["text hard to read: p"] if (name, scheme) == ("grey", "dark") else wanted
            assert len(lines) == len(expected) and all(any(w in line for line in lines) for w in expected), (name, lines)


def test_requests_are_seen(tmp_path: Path, folder: Path, chromium: str) -> None:
    """A request is seen. Smuggled into a report, the same picture and a script load nothing, and the browser complains."""
    picture = '<img src="http://localhost:9/x.png" alt="Gone">'
    [seen] = visit([wrong_page(tmp_path / "loads.html", "", picture)], chromium=chromium)
    assert seen.requests == ["http://localhost:9/x.png"]
    assert "light: asks the network for http://localhost:9/x.png" in complaints(seen, "light")
    path = tmp_path / "smuggled.html"
    path.write_text(text_report(folder).replace("</main>", f'{picture}<script>document.title = "taken"</script></main>'), encoding="utf-8")
    [seen] = visit([path], chromium=chromium)
    assert seen.requests == [] and seen.facts["title"] != "taken"
    assert len(seen.messages) == 2 and all("Content Security Policy" in message for message in seen.messages), seen.messages
