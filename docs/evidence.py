"""Make every committed report again, in order: `make evidence`. Goes on where it stopped, and says which headline numbers changed."""
import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from email_trm.core.runs import write_json
from email_trm.evaluation.pages import has_own_page, pages_of, write_pages
from email_trm.evaluation.reports import results_table

ROOT = Path(__file__).resolve().parents[1]
DONE = ROOT / "build" / "evidence" / "done"  # One empty file for each report that is finished
BEFORE = ROOT / "build" / "evidence" / "before.json"  # The headline numbers when this round began

# Report, and the targets that make it. Later ones need what earlier ones left in build/evidence.
ORDER: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("data", (("evidence-data",),)),
    ("import", (("evidence-import",),)),
    ("categories", (("evidence-categories",),)),
    ("robustness", (("evidence-robustness",),)),
    ("augmentation", (("evidence-augmentation",),)),
    ("students", tuple(("evidence-teacher", "evidence-students", f"SEED={seed}") for seed in (0, 1, 2))),
    ("benchmark", (("evidence-benchmark",),)),
    ("explanations", (("evidence-explanations",),)),
    ("reliability", (("evidence-reliability",),)),
    ("actions", (("evidence-actions",), ("evidence-stages",))),
    ("reasoning", (("evidence-reasoning",),)),
    ("owner", (("evidence-owner",),)),
    ("serving", (("evidence-serving",),)),
    ("learn", (("evidence-learn",),)),
    ("search", (("evidence-search",),)),
    ("ensemble", (("evidence-ensemble",),)),
)


def headlines(reports: Path) -> dict[str, dict[str, str]]:
    """Report -> what is measured -> its value, as the pages show it."""
    found: dict[str, dict[str, str]] = {}
    for folder in sorted(p for p in reports.iterdir() if p.is_dir()):
        numbers: dict[str, str] = {}
        for page in pages_of(folder):
            metrics: dict[str, Any] = json.loads((folder / page.metrics).read_text(encoding="utf-8"))
            if page.headline:
                numbers |= {tile.label: tile.value for tile in page.headline(metrics)[1]}
        if folder.name == "categories" and (folder / "metrics.json").is_file():
            rows = results_table(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
            numbers |= {f"{r['model']}, {r['split']} split: {k}": f"{r[k]:.3f}" for r in rows for k in ("accuracy", "macro_f1")}
        found[folder.name] = numbers
    return found


def changes(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
    """A line for each headline number that is not what it was."""
    lines = []
    for name in sorted(set(before) | set(after)):
        old, new = before.get(name, {}), after.get(name, {})
        lines += [f"{name}: {k}: {old.get(k, 'nothing')} -> {new.get(k, 'nothing')}" for k in {**old, **new} if old.get(k) != new.get(k)]
    return lines


def finish(folder: Path) -> None:
    """Write the pages of a report, unless its run wrote its own."""
    if not has_own_page(folder):
        write_pages(folder)


def main() -> int:
    """Run what is not done yet. 0 if everything was made, 1 if a target failed (the others are still tried)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="reports with commas between: " + ",".join(name for name, _ in ORDER))
    parser.add_argument("--dry-run", action="store_true", help="say what would be made")
    options = parser.parse_args()
    chosen = [n for n in options.only.split(",") if n] or [name for name, _ in ORDER]
    if unknown := [n for n in chosen if n not in dict(ORDER)]:
        parser.error(f"there is no report {unknown[0]!r}")
    todo = [(name, targets) for name, targets in ORDER if name in chosen and not (DONE / name).exists()]
    if options.dry_run:
        for name, targets in todo:
            print(f"{name}: " + "; ".join("make " + " ".join(t) for t in targets))
        return 0
    DONE.mkdir(parents=True, exist_ok=True)
    if not BEFORE.exists():
        write_json(BEFORE, headlines(ROOT / "reports"))
    failed = []
    for i, (name, targets) in enumerate(todo, start=1):
        print(f"[{i} of {len(todo)}] {name}", flush=True)
        if any(subprocess.run(["make", *target], cwd=ROOT).returncode for target in targets):
            failed.append(name)
            continue
        finish(ROOT / "reports" / name)
        (DONE / name).touch()
    lines = changes(json.loads(BEFORE.read_text(encoding="utf-8")), headlines(ROOT / "reports"))
    print("\n".join(["", f"{len(lines)} headline numbers changed:", *lines]) if lines else "\nNo headline number changed.")
    if failed:
        print(f"not made: {', '.join(failed)}.  What to do: read above why, then run the same command again; what is done stays done")
        return 1
    if len(chosen) == len(ORDER):
        for path in (*DONE.iterdir(), BEFORE):
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
