"""Two runs compared, and all runs on one page: through the command, with what goes wrong, and in a browser where there is one."""
import csv
import html as html_text
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import forked
import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from email_trm.core.errors import DataError
from email_trm.evaluation.compare import compare_runs, mcnemar, render_comparison, synthetic_run
from email_trm.evaluation.metrics import macro_f1, synthetic_predictions
from email_trm.evaluation.overview import read_overview, render_overview, write_index
from email_trm.mail.sample import sample_mailbox

NAMES = ["work", "personal", "spam", "travel"]
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"


def email_trm(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command, and what it says as text."""
    done = forked.email_trm(*args, cwd=cwd)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def mended(frame: pd.DataFrame, n: int) -> pd.DataFrame:
    """The same answers, with the first `n` mistakes put right."""
    out, wrong = frame.copy(), frame.index[frame["category"] != frame["predicted"]][:n]
    assert len(wrong) == n
    out.loc[wrong, "predicted"] = frame.loc[wrong, "category"]
    return out


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder `reports` with two SYNTHETIC runs: b is right on 15 more mails than a, on both splits."""
    first = synthetic_predictions(NAMES, 300)
    for name, frame, day in (("a", first, 1), ("b", mended(first, 15), 2)):
        both = pd.concat([frame.assign(split="random"), frame.assign(split="group")])
        synthetic_run(tmp_path / "reports" / name, both, created=f"2026-01-0{day}T00:00:00+00:00")
    return tmp_path / "reports"


# ---- numbers ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("only_a", "only_b", "by_hand"),
    [(1, 5, 14 / 64), (0, 5, 2 / 32), (2, 8, 2 * (1 + 10 + 45) / 1024), (3, 3, 1.0), (0, 0, 1.0)])
def test_mcnemar_by_hand_and_by_scipy(only_a: int, only_b: int, by_hand: float) -> None:
    """Twice the tail of a fair coin; counted out on paper, and from scipy's distribution function."""
    assert mcnemar(only_a, only_b) == pytest.approx(by_hand, abs=1e-12)
    assert mcnemar(only_a, only_b) == pytest.approx(min(1.0, 2 * binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)), abs=1e-12)


def test_fifteen_more_mails_are_seen(runs: Path) -> None:
    """B wins 15 mails and loses none: better, with the right counts, and the other way round worse."""
    found = compare_runs(runs / "a", runs / "b")
    first = pd.read_parquet(runs / "a/predictions.parquet").query("split == 'random'")
    for split in ("random", "group"):
        one = found.record["splits"][split]
        assert (one["agreement"]["only_a"], one["agreement"]["only_b"]) == (0, 15)
        assert one["agreement"]["p"] == pytest.approx(2 / 2**15) and "B is better than A" in one["verdict"]
        gap = one["scores"]["accuracy"]["difference"]
        assert gap["value"] == pytest.approx(15 / 300) and 0 < gap["low"] < 15 / 300 < gap["high"] < 0.1
        assert one["scores"]["macro_f1"]["a"]["value"] == pytest.approx(macro_f1(first, NAMES))
        assert sum(c["won"] for c in one["categories"]) == 15 and sum(c["lost"] for c in one["categories"]) == 0
    assert len(found.changed) == 30 and set(found.changed["change"]) == {"won"} and not found.record["warnings"]
    back = compare_runs(runs / "b", runs / "a").record["splits"]["random"]
    assert "B is worse than A" in back["verdict"] and back["agreement"]["p"] == pytest.approx(2 / 2**15)
    assert "not distinguishable" in compare_runs(runs / "a", runs / "a").record["splits"]["random"]["verdict"]


def test_interval_is_that_of_drawing_mails(runs: Path) -> None:
    """Counts drawn from a multinomial are mails drawn with replacement: compared with drawing rows, macro-F1 by the metrics module."""
    gap = compare_runs(runs / "a", runs / "b").record["splits"]["random"]["scores"]["macro_f1"]["difference"]
    a, b = (pd.read_parquet(runs / f"{x}/predictions.parquet").query("split == 'random'") for x in "ab")
    rng = np.random.default_rng(5)
    rows = [rng.integers(0, len(a), len(a)) for _ in range(150)]
    low, high = np.percentile([macro_f1(b.iloc[r], NAMES) - macro_f1(a.iloc[r], NAMES) for r in rows], [2.5, 97.5])
    assert (gap["low"], gap["high"]) == pytest.approx((low, high), abs=0.01)


# ---- fairness and refusals -------------------------------------------------------------------------------------------------
def test_unfair_comparisons_are_warned_of(runs: Path) -> None:
    """Test mails of A that taught C are counted and left out; a shared mail that was learned takes the verdict away."""
    first = synthetic_predictions(NAMES, 300)
    synthetic_run(runs / "c", first[200:], learned=list(first["id"][:50]), fingerprint="other")
    record = compare_runs(runs / "a", runs / "c").record
    assert any("50 of the 300 test mails of A were training or validation mails of B" in w for w in record["warnings"])
    assert any("fingerprints of the data differ" in w for w in record["warnings"])
    assert record["splits"]["random"]["cut"]["n"] == 100 and record["alone"]["a"] == 500
    synthetic_run(runs / "d", first.assign(split="random"))
    parts = pd.read_parquet(runs / "d/splits.parquet")
    parts.loc[:6, "part"] = "train"
    parts.to_parquet(runs / "d/splits.parquet")
    record = compare_runs(runs / "a", runs / "d").record
    assert any(w.startswith("Not fair, random split: B had learned from 7 of the 300") for w in record["warnings"])
    assert "No verdict" in record["splits"]["random"]["verdict"]
    (runs / "d/splits.parquet").unlink()
    assert any("B has no splits.parquet" in w for w in compare_runs(runs / "a", runs / "d").record["warnings"])


def test_what_cannot_be_compared_is_refused(runs: Path) -> None:
    """Other labels, no shared mail, damaged and missing tables: a cause, a remedy, no id."""
    first = synthetic_predictions(NAMES, 300)
    relabelled = first.assign(category=[NAMES[(NAMES.index(c) + 1) % 4] if i < 9 else c for i, c in enumerate(first["category"])])
    synthetic_run(runs / "relabelled", relabelled)
    synthetic_run(runs / "strangers", first.assign(id=[f"other-{i}" for i in range(300)]))
    synthetic_run(runs / "damaged", first)
    (runs / "damaged/predictions.parquet").write_bytes((runs / "a/predictions.parquet").read_bytes()[:500])
    (runs / "empty").mkdir()
    for name, cause in {"relabelled": "true category of 9 of 300", "strangers": "share no test mail", "damaged": "cannot be read",
            "empty": "no predictions.parquet", "nowhere": "no folder"}.items():
        with pytest.raises(DataError, match=cause) as caught:
            compare_runs(runs / "a", runs / name)
        assert caught.value.remedy and "synthetic-0" not in str(caught.value)


# ---- the commands ----------------------------------------------------------------------------------------------------------
def test_compare_command(runs: Path) -> None:
    """Table and sentence on standard output, files where asked, JSON the same; exit code 4 for what cannot be compared."""
    folder = runs.parent
    done = email_trm("compare", "reports/a", "reports/b", "--changed", "changed.csv", "--html", "c.html", "--output", "c.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "B is better than A" in done.stdout and "SYNTHETIC" in done.stdout and "only B 15" in done.stdout
    with open(folder / "changed.csv", encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    assert len(rows) == 30
    assert list(rows[0]) == ["split", "id", "category", "answer_a", "answer_b", "confidence_a", "confidence_b", "change"]
    assert all(r["answer_b"] == r["category"] != r["answer_a"] and r["id"].startswith("synthetic-") for r in rows)
    told = json.loads(email_trm("compare", "reports/a", "reports/b", "--json", cwd=folder).stdout)
    assert told["splits"] == json.loads((folder / "c.json").read_text(encoding="utf-8"))["splits"]
    assert "Synthetic" in (folder / "c.html").read_text(encoding="utf-8")
    refused = email_trm("compare", "reports/a", "reports/nowhere", cwd=folder)
    assert refused.returncode == 4 and "What to do" in refused.stderr and "Traceback" not in refused.stderr
    assert email_trm("compare", "reports/a", cwd=folder).returncode == 2


def test_index_command(runs: Path) -> None:
    """Writes the page, names what is damaged, and leaves nothing half written."""
    (runs / "broken").mkdir()
    (runs / "broken/metrics.json").write_text("{", encoding="utf-8")
    done = email_trm("index", cwd=runs.parent)
    assert done.returncode == 0 and done.stdout.strip() == "reports/index.html: 2 folders, 1 damaged" and "broken" in done.stderr
    page = (runs / "index.html").read_text(encoding="utf-8")
    assert "email-trm compare reports/a reports/b" in page and page.count("SYNTHETIC") == 2 and "broken" in page
    assert not [p.name for p in runs.iterdir() if "partial" in p.name]
    assert email_trm("index", "nowhere", cwd=runs.parent).returncode == 2


def test_no_text_of_mail(tmp_path: Path) -> None:
    """Runs over the synthetic mailbox whose tables also carry text: nothing of it comes out."""
    mails = [m for m in sample_mailbox(200) if m.category]
    frame = synthetic_predictions(sorted({m.category for m in mails if m.category}), len(mails)).assign(id=[m.id for m in mails],
        subject=[m.subject for m in mails], body=[m.body for m in mails], sender=[m.sender for m in mails])
    synthetic_run(tmp_path / "reports/a", frame)
    synthetic_run(tmp_path / "reports/b", mended(frame, 15))
    done = email_trm("compare", "reports/a", "reports/b", "--changed", "c.csv", "--html", "c.html", "--output", "c.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    write_index(tmp_path / "reports")
    written = [(tmp_path / n).read_text(encoding="utf-8") for n in ("c.csv", "c.html", "c.json", "reports/index.html")]
    text = html_text.unescape("\n".join([done.stdout, done.stderr, *written]))
    assert any(m.id in written[0] for m in mails) and not any(m.id in page for m in mails for page in written[1:])
    for mail in mails:
        assert mail.sender.split("<")[-1].rstrip(">") not in text
        for line in (mail.subject, *mail.body.splitlines()):
            assert len(line) < 25 or line not in text


# ---- the pages -------------------------------------------------------------------------------------------------------------
def test_pages_load_nothing_and_escape_names(runs: Path) -> None:
    """No address, no script but the one whose hash is allowed, and names of folders are text."""
    (runs / "a").rename(runs / "<img src=x onerror=alert(1)>")
    page = render_overview(read_overview(runs))
    compared = render_comparison(compare_runs(runs / "<img src=x onerror=alert(1)>", runs / "b").record)
    for text in (page, compared):
        assert "<img" not in text and not re.search(r"(src|href)=\"(https?:|//|/|javascript:)", text) and "default-src 'none'" in text
    assert page.count("<script>") == 1 and "<script" not in compared and re.search(r"script-src 'sha256-[\w+/]{43}='", page)


def test_index_over_the_committed_reports(repo: Path) -> None:
    """Every folder with a metrics.json is listed and links to something that is there."""
    reports = repo / "reports"
    folders = {p.parent.name for p in reports.glob("*/metrics.json") if not p.parent.name.startswith(".")}
    overview = read_overview(reports)
    page = render_overview(overview)
    assert {"categories", "benchmark", "actions", "reliability", "import"} <= folders
    assert {r["name"] for r in overview.rows} == folders and not overview.damaged
    assert all((reports / r["page"]).is_file() and f'href="{r["page"]}"' in page for r in overview.rows if "%" not in r["page"])
    scores = json.loads((reports / "categories/metrics.json").read_text(encoding="utf-8"))["models"]["EmailTRM"]["group"]
    row = next(r for r in overview.rows if r["name"] == "categories")
    assert row["scores"]["group"]["macro_f1"] == scores["macro_f1"] and f"{scores['macro_f1']:.3f}" in page and row["mail"] == "real"


# ---- in a browser ----------------------------------------------------------------------------------------------------------
def names_in(page: Path, profile: Path, hash_: str = "") -> tuple[list[str], dict[str, str]]:
    """The rows of the first table as the browser has them, and which columns are sorted how."""
    if not os.access(CHROMIUM, os.X_OK):
        pytest.skip("no chromium here: sorting in a browser was not tried")
    done = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000",
        f"--user-data-dir={profile}", "--dump-dom", f"{page.as_uri()}{hash_}"], capture_output=True, text=True, timeout=120)
    table = done.stdout.partition("<tbody>")[2].partition("</tbody>")[0]
    heads = {re.search(r'data-key="(\w+)"', h)[1]: re.search(r'aria-sort="(\w+)"', h)[1]  # type: ignore[index]
        for h in re.findall(r"<th [^>]*>", done.stdout) if "aria-sort" in h}
    return re.findall(r'<th scope="row"><a [^>]*>([^<]+)</a>', table), heads


def test_sorting_in_a_browser(tmp_path: Path) -> None:
    """A link to a sorted view sorts, under the page's own policy; a click sorts, a second one turns it round; gaps go last."""
    frame = synthetic_predictions(NAMES, 300)
    for day, (name, n) in enumerate({"middle": 20, "best": 40, "worst": 0}.items(), start=1):
        synthetic_run(tmp_path / "reports" / name, mended(frame, n), created=f"2026-01-0{day}T00:00:00+00:00")
    synthetic_run(tmp_path / "reports/elsewhere", frame.assign(split="time"), created="2026-01-09T00:00:00+00:00")
    write_index(tmp_path / "reports")
    page = tmp_path / "reports/index.html"
    assert names_in(page, tmp_path / "p") == (["elsewhere", "worst", "best", "middle"], {})  # newest first, as written
    down, up = (names_in(page, tmp_path / "p", f"#sort=accuracy_random:{way}") for way in ("desc", "asc"))
    assert down == (["best", "middle", "worst", "elsewhere"], {"accuracy_random": "descending"})
    assert up == (["worst", "middle", "best", "elsewhere"], {"accuracy_random": "ascending"})
    assert names_in(page, tmp_path / "p", "#sort=nothing:desc")[0] == ["elsewhere", "worst", "best", "middle"]
    text = re.sub(r"script-src '[^']+'", "script-src 'unsafe-inline'", page.read_text(encoding="utf-8"))
    for clicks, order in ((1, "descending"), (2, "ascending")):
        press = "<script>for (let i = 0; i < CLICKS; i++) document.querySelector('[data-key=macro_f1_random] button').click()</script>"
        (tmp_path / "reports/clicked.html").write_text(text + press.replace("CLICKS", str(clicks)), encoding="utf-8")
        names, heads = names_in(tmp_path / "reports/clicked.html", tmp_path / "p")
        assert names == [*(["best", "middle", "worst"] if clicks == 1 else ["worst", "middle", "best"]), "elsewhere"]
        assert heads == {"macro_f1_random": order}
    (tmp_path / "reports/inserted.html").write_text(page.read_text(encoding="utf-8") + press.replace("CLICKS", "1"), encoding="utf-8")
    assert names_in(tmp_path / "reports/inserted.html", tmp_path / "p")[1] == {}  # a script the page does not know is not run
