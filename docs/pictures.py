"""Make the screenshots of the docs again: the service's page, the report of a run, and the widgets, all on synthetic mail, light and dark.

It starts `email-trm serve`, trains on the synthetic sample (a minute), opens JupyterLab, and photographs them with headless Chromium.
No mail of anybody is in the pictures. Needs Chromium, Playwright, Pillow, and the extras `serve` and `lab`.

python docs/pictures.py [--run FOLDER] [--only serve|report|lab]
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "_static" / "pictures"
COMMAND = str(Path(sys.executable).with_name("email-trm"))
MOST = 150_000  # Bytes of a picture
SCHEMES = {"light": 1, "dark": 0}  # Blink's numbers for preferredColorScheme
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars", "--allow-file-access-from-files",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]


def chromium() -> str:
    """The browser, or an end with a remedy."""
    found = next((f for f in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if f), None)
    if not found:
        raise SystemExit("Chromium is not installed.\n  What to do: install it, or leave the pictures as they are")
    return found


def small(raw: bytes, width: int) -> bytes:
    """A PNG of this width with a palette of its own. Raises `SystemExit` if it is still large."""
    from PIL import Image

    picture = Image.open(BytesIO(raw)).convert("RGB")
    picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    for colours in (128, 64, 32, 16):
        out = BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() <= MOST:
            return out.getvalue()
    raise SystemExit("a picture is too large.\n  What to do: choose a smaller window")


def photograph(address: str, name: str, size: tuple[int, int]) -> None:
    """Two pictures of a page, `NAME-light.png` and `NAME-dark.png`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for scheme, number in SCHEMES.items():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            shot = Path(place) / "shot.png"
            command = [chromium(), *OPTIONS, f"--user-data-dir={place}/profile", f"--window-size={size[0]},{size[1]}",
                f"--blink-settings=preferredColorScheme={number}", "--force-device-scale-factor=1.5", "--virtual-time-budget=20000",
                f"--screenshot={shot}", address]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            target = FOLDER / f"{name}-{scheme}.png"
            target.write_bytes(small(shot.read_bytes(), size[0]))
        print(f"{target.relative_to(ROOT)}: {target.stat().st_size:,} bytes")


def ready(address: str) -> bool:
    """Has the service loaded its model?"""
    try:
        with urlopen(f"{address}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:  # An HTTPError is one
        return False


@contextmanager
def service() -> Iterator[str]:
    """The service on a port of its own; its address."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as place, (Path(place) / "log").open("w+") as log:
        process = subprocess.Popen([COMMAND, "serve", "--port", "0"], env=environment, stdout=log, stderr=log)
        try:
            address = None
            while not address:
                if process.poll() is not None:
                    raise SystemExit("the service did not start:\n" + Path(log.name).read_text())
                time.sleep(0.3)
                address = re.search(r"http://127\.0\.0\.1:\d+", Path(log.name).read_text())
            while not ready(address[0]):
                time.sleep(0.3)
            yield address[0]
        finally:
            process.terminate()
            process.wait(30)


def widgets(run: Path) -> None:
    """The inbox, the inspector and the dashboard in JupyterLab, with the model of a run on the synthetic sample."""
    sys.path.insert(0, str(ROOT / "tests"))
    from lab import Lab, write_notebook

    model = str((run / "model").resolve())
    cells = {
        "inbox": ("from email_trm.widgets.inbox import inbox", f"inbox('sample', {model!r}, limit=200)"),
        "inspector": ("from email_trm.widgets.inspector import inspector", f"inspector({model!r})"),
        "dashboard": ("from email_trm.widgets.training import dashboard", f"dashboard({str(run.resolve())!r})"),
    }
    with tempfile.TemporaryDirectory() as place, Lab(place) as lab:
        for name, code in cells.items():
            write_notebook(Path(place) / f"{name}.ipynb", *code)
            with lab.open(f"{name}.ipynb", (1200, 1500)) as book:
                book.run_all()
                box = book.page.locator(f".trm-{'training' if name == 'dashboard' else name}")
                if name == "inbox":
                    box.locator("tbody tr[data-n]").nth(1).click()
                    box.locator("svg.plot").wait_for()
                if name == "inspector":
                    box.get_by_text("Here:").wait_for()
                    box.locator(".words:not(.old) mark").first.wait_for()
                for scheme in SCHEMES:
                    book.theme(scheme)
                    book.idle()
                    raw = box.screenshot()
                    target = FOLDER / f"{name}-{scheme}.png"
                    target.write_bytes(small(raw, 1000))
                    print(f"{target.relative_to(ROOT)}: {target.stat().st_size:,} bytes")
                book.check()


def main() -> None:
    """Make all pictures, or some."""
    parser = argparse.ArgumentParser(description="Make the screenshots of the docs again.")
    parser.add_argument("--run", type=Path, help="a finished run on the synthetic sample; made if left out")
    parser.add_argument("--only", choices=("serve", "report", "lab"), help="one of the three")
    args = parser.parse_args()
    wanted = {args.only} if args.only else {"serve", "report", "lab"}
    if "serve" in wanted:
        with service() as address:
            photograph(f"{address}/#example", "serve-example", (900, 1350))
    if wanted == {"serve"}:
        return
    with tempfile.TemporaryDirectory() as place:
        run = args.run or Path(place) / "synthetic"
        if not args.run:
            subprocess.run([COMMAND, "run", "--source", "sample", "--split", "group", "--output", str(run)], check=True)
        if "report" in wanted:
            photograph((run / "report.html").resolve().as_uri(), "report-synthetic", (900, 1000))
        if "lab" in wanted:
            widgets(run)


if __name__ == "__main__":
    main()
