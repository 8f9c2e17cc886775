"""Drawings in the pages: SVG in the colour of the text, so that light and dark both hold. `<!-- drawing: trm -->` puts one there.

docs/drawings/NAME.svg is drawn by hand; `halting` is drawn from the numbers of reports/categories.
"""
import json
from html import escape
from pathlib import Path

LEFT, RIGHT, TOP, BOTTOM = 62, 620, 24, 220  # The plot's frame in a drawing of 640 × 270


def halting(root: Path) -> str:
    """Accuracy by mean steps over the thresholds of a run, on the validation mail of each split; the threshold taken is filled."""
    report = json.loads((root / "reports" / "categories" / "metrics.json").read_text(encoding="utf-8"))["emailtrm"]
    rows = {split: sorted(table, key=lambda r: r["mean_steps"]) for split, table in report["thresholds"].items()}
    every = [r["accuracy"] for table in rows.values() for r in table]
    most = max(r["mean_steps"] for table in rows.values() for r in table)
    low, high = int(min(every) * 50) / 50, (int(max(every) * 50) + 1) / 50
    across = lambda steps: LEFT + 18 + (steps - 1) / max(most - 1, 1e-9) * (RIGHT - LEFT - 130)
    up = lambda accuracy: BOTTOM - (accuracy - low) / (high - low) * (BOTTOM - TOP)
    parts = [f'<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>']
    for n in range(round((high - low) * 50) + 1):
        y = up(low + n / 50)
        parts += [f'<path d="M{LEFT - 4} {y:.1f}H{LEFT}"/>',
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{low + n / 50:.2f}</text>']
    for n in range(5):
        x, steps = across(1 + n * (most - 1) / 4), 1 + n * (most - 1) / 4
        parts += [f'<path d="M{x:.1f} {BOTTOM}v4"/>', f'<text x="{x:.1f}" y="{BOTTOM + 18}" text-anchor="middle">{steps:.2f}</text>']
    for split, table in rows.items():
        points = [(across(r["mean_steps"]), up(r["accuracy"])) for r in table]
        parts.append(f'<polyline stroke-width="2" {"stroke-dasharray=" + chr(34) + "5 3" + chr(34) if split == "group" else ""} '
            f'points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        at = next(r for r in table if r["threshold"] == report["halt_threshold"][split])
        parts.append(f'<circle cx="{across(at["mean_steps"]):.1f}" cy="{up(at["accuracy"]):.1f}" r="5" fill="currentColor"/>')
        said = {"random": "random split", "group": "unseen senders"}.get(split, split)
        parts.append(f'<text x="{points[-1][0] + 10:.1f}" y="{points[-1][1] + 4:.1f}">{escape(said)}</text>')
    parts += [f'<text x="{(LEFT + RIGHT) // 2 - 40}" y="{BOTTOM + 40}" text-anchor="middle">mean supervision steps</text>',
        f'<text x="{LEFT - 50}" y="14">accuracy on validation mail</text>']
    drawn = "\n".join(p.replace("<text ", '<text stroke="none" font-size="12" ', 1) for p in parts)
    label = "Accuracy on validation mail by the mean number of steps, for both splits"
    return (f'<svg class="drawing" viewBox="0 0 640 270" role="img" aria-label="{label}" fill="none" stroke="currentColor" '
        f'stroke-width="1.2">\n{drawn}\n</svg>')


CAPTIONS = {
    "trm": "The loop. The reader, if there is one, fills its slot before the second step.",
    "stages": "The chain. Dotted arrows: the reward model judges. Dashed boxes below: branches that nobody goes on from.",
    "halting": "What thinking on is worth: one point per threshold, validation mail of reports/categories, seed 0. "
        "Filled: the threshold that was taken.",
}  # Name -> the words below it


def drawing(root: Path, name: str) -> str:
    """A drawing with its caption. Raises `ValueError` for an unknown one."""
    if name not in CAPTIONS:
        raise ValueError(f"there is no drawing {name}")
    svg = halting(root) if name == "halting" else (root / "docs" / "drawings" / f"{name}.svg").read_text(encoding="utf-8").strip()
    return f'<figure class="drawing">\n<div tabindex="0">\n{svg}\n</div>\n<figcaption>{CAPTIONS[name]}</figcaption>\n</figure>\n'
