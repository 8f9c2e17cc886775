"""`make evidence`: every committed report has a target that makes it, and what changed is said."""
import json
import re
import shutil
from pathlib import Path

import evidence

from email_trm.evaluation.reports import results_table


def test_every_committed_report_can_be_made_again(repo: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (repo / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = {t for _, lists in evidence.ORDER for one in lists for t in one if "=" not in t}
    assert asked <= targets, asked - targets
    committed = {p.name for p in (repo / "reports").iterdir() if p.is_dir() and (p / "README.md").exists()}
    assert committed <= {name for name, _ in evidence.ORDER}


def test_changes_are_named(repo: Path) -> None:
    before = evidence.headlines(repo / "reports")
    assert evidence.changes(before, before) == []
    metrics = json.loads((repo / "reports" / "categories" / "metrics.json").read_text(encoding="utf-8"))
    row = results_table(metrics)[0]
    label = f"{row['model']}, {row['split']} split: accuracy"
    assert before["categories"][label] == f"{row['accuracy']:.3f}"
    after = before | {"categories": before["categories"] | {label: "0.999"}, "new": {"macro-F1": "0.5"}}
    assert evidence.changes(before, after) == [f"categories: {label}: {row['accuracy']:.3f} -> 0.999", "new: macro-F1: nothing -> 0.5"]


def test_pages_are_written_where_a_run_wrote_none(repo: Path, tmp_path: Path) -> None:
    for name in ("data", "benchmark"):
        folder = shutil.copytree(repo / "reports" / name, tmp_path / name)
        (folder / "report.html").write_text("old", encoding="utf-8")
        evidence.finish(folder)
    assert (tmp_path / "data" / "report.html").read_text(encoding="utf-8") == "old"
    assert (tmp_path / "benchmark" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
