"""What a browser says about a page: messages, requests, pictures without words, text that is hard to read or runs off a phone.

`check_page(path)` opens an HTML file in headless Chromium, in light and in dark, and returns complaints; `check_pages` opens many at
once, which is faster. A page lies untouched in a frame as wide as a phone; a script beside the frame looks at it. No name is resolved,
so nothing leaves the machine.
"""
import html
import json
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SCHEMES = {"light": 1, "dark": 0}  # Blink's numbers for preferredColorScheme
OWN = ("file:", "data:", "about:", "blob:", "chrome:")  # what a page may open without a network
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars", "--allow-file-access-from-files",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--window-size=1300,1000", "--dump-dom"]

# Looks at the page in each frame and leaves what it finds, as JSON, in the outer page.
LOOK = """
function luminance([r, g, b]) {
  const [x, y, z] = [r, g, b].map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
  return .2126 * x + .7152 * y + .0722 * z;
}
function color(text) { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; }
function over(top, below) { return below.map((v, i) => top[i] * top[3] + v * (1 - top[3])); }
function behind(win, element, paper) {
  if (!element) return paper;
  return over(color(win.getComputedStyle(element).backgroundColor), behind(win, element.parentElement, paper));
}
function contrasts(win, doc, paper) {
  const low = [];
  for (const e of doc.body.querySelectorAll("*")) {
    const style = win.getComputedStyle(e), words = [...e.childNodes].filter(n => n.nodeType === 3 && n.data.trim());
    if (!words.length || style.visibility === "hidden" || !e.getClientRects().length || e.closest("[aria-hidden=true], .sr")) continue;
    const below = behind(win, e, paper), a = luminance(over(color(style.color), below)), b = luminance(below);
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05), size = parseFloat(style.fontSize);
    const wanted = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    if (ratio < wanted) low.push(`${e.tagName.toLowerCase()}${e.className ? "." + e.className : ""} ${ratio.toFixed(2)}`);
  }
  return [...new Set(low)];
}
function look(frame) {
  const win = frame.contentWindow, doc = frame.contentDocument, all = s => [...doc.querySelectorAll(s)];
  const dark = win.matchMedia("(prefers-color-scheme: dark)").matches, ids = all("[id]").map(e => e.id);
  const paper = /dark/.test(win.getComputedStyle(doc.documentElement).colorScheme) && dark ? [18, 18, 18] : [255, 255, 255];
  const inner = all("a[href^='#']").map(a => decodeURIComponent(a.getAttribute("href").slice(1)));
  return {
    dark, width: win.innerWidth, scroll: doc.documentElement.scrollWidth, lang: doc.documentElement.lang, title: doc.title,
    h1: all("h1").length,
    paper: win.getComputedStyle(doc.body).backgroundColor, text: doc.body.innerText.length,
    alt: all("img").filter(i => !(i.getAttribute("alt") || "").trim() && i.getAttribute("role") !== "presentation").length,
    broken: all("img").filter(i => !i.complete || !i.naturalWidth).length,
    scopes: all("table th:not([scope])").length, bare: all("table").filter(t => !t.querySelector("th")).length,
    twice: [...new Set(ids.filter((id, k) => ids.indexOf(id) !== k))], lost: inner.filter(id => id && !doc.getElementById(id)),
    unreachable: all("body *").filter(e => e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0
      && /auto|scroll/.test(win.getComputedStyle(e).overflowX)).length,
    contrast: contrasts(win, doc, paper)};
}
addEventListener("load", () => {
  const safely = frame => { try { return look(frame); } catch (error) { return {error: String(error)}; } };
  const seen = [...document.querySelectorAll("iframe")].map(safely);
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
"""


def find_chromium() -> str | None:
    """Chromium or Chrome on this machine; None if there is none."""
    found = [shutil.which(name) for name in NAMES]
    usual = Path("/usr/bin/chromium")
    return next((f for f in found if f), str(usual) if usual.exists() else None)


@dataclass
class Look:
    """What one visit to a page found."""

    facts: dict = field(default_factory=dict)  # what LOOK reports
    messages: list[str] = field(default_factory=list)  # console
    requests: list[str] = field(default_factory=list)  # addresses asked for, the machine's own files left out


def console_messages(log: str) -> list[str]:
    """Messages on the console, of any level: Chromium logs all of them as INFO:CONSOLE, errors too."""
    return re.findall(r"[A-Z]+:CONSOLE[:(]\d+\)?\] (.*)", log)


def requests_in(net_log: Path) -> list[str]:
    """Addresses that pages asked for. What Chromium asks for itself has an initiator that is "not an origin"."""
    text = net_log.read_text(encoding="utf-8", errors="replace").rstrip().rstrip(",")
    try:
        log = json.loads(text)
    except ValueError:  # Chromium ended before it closed the list
        log = json.loads(text + "]}")
    started = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [e["params"] for e in log["events"] if e["type"] == started and "url" in e.get("params", {})]
    return sorted({p["url"] for p in asked if p.get("initiator") != "not an origin" and not p["url"].startswith(OWN)})


def visit(paths: list[Path], scheme: str = "light", width: int = 400, chromium: str | None = None) -> list[Look]:
    """Open pages in frames of this width and look at them. What no page is named for is held against all of them."""
    with tempfile.TemporaryDirectory(prefix="email-trm-browser-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        frames = [f'<iframe src="{p.resolve().as_uri()}" style="width:{width}px;height:900px;border:0"></iframe>' for p in paths]
        outer = folder / "outer.html"
        outer.write_text(f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>outer</title><script>{LOOK}</script></head>'
            f'<body>{"".join(frames)}<pre id="seen"></pre></body></html>', encoding="utf-8")
        command = [chromium or find_chromium() or "chromium", *OPTIONS, f"--user-data-dir={folder / 'profile'}",
            f"--log-net-log={folder / 'net.json'}", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", outer.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        seen = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, re.DOTALL)
        if not seen:
            raise RuntimeError(f"Chromium did not show {outer.name}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        facts, messages, requests = json.loads(html.unescape(seen[1])), console_messages(done.stderr), requests_in(folder / "net.json")
    looks = []
    for path, found in zip(paths, facts, strict=True):
        if "error" in found:
            raise RuntimeError(f"{path.name} could not be looked at: {found['error']}")
        others = [p.resolve().as_uri() for p in paths if p != path]
        looks.append(Look(found, [m for m in messages if not any(f"source: {other} (" in m for other in others)], requests))
    return looks


def complaints(look: Look, scheme: str) -> list[str]:
    """What is wrong with a page, in words."""
    f = look.facts
    out = [f"console: {m}" for m in look.messages] + [f"asks the network for {url}" for url in look.requests]
    if f["dark"] != (scheme == "dark"):
        out.append(f"the {scheme} scheme was not shown")
    if f["scroll"] > f["width"]:
        out.append(f"{f['scroll']} px wide in a window of {f['width']} px")
    counts = {"alt": "pictures without words", "broken": "pictures that do not show", "scopes": "table headings without scope",
        "bare": "tables without headings", "unreachable": "boxes that scroll and cannot be reached with the keyboard"}
    out += [f"{f[key]} {words}" for key, words in counts.items() if f[key]]
    lists = {"twice": "ids used twice", "lost": "links to nowhere", "contrast": "text hard to read"}
    out += [f"{words}: {', '.join(f[key][:5])}" for key, words in lists.items() if f[key]]
    wanted = {"no language": f["lang"], "no title": f["title"], "no text": f["text"]}
    out += [words for words, there in wanted.items() if not there]
    if f["h1"] != 1:
        out.append(f"{f['h1']} h1 headings")
    return [f"{scheme}: {line}" for line in out]


def check_pages(paths: list[Path], width: int = 400, chromium: str | None = None) -> dict[str, list[str]]:
    """Everything that is wrong with pages, in light and in dark, by path; an empty list if all is well."""
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda scheme: [complaints(k, scheme) for k in visit(paths, scheme, width, chromium)], SCHEMES))
    return {str(path): [line for found in both for line in found[k]] for k, path in enumerate(paths)}


def check_page(path: str | Path, width: int = 400, chromium: str | None = None) -> list[str]:
    """Everything that is wrong with one page."""
    return check_pages([Path(path)], width, chromium)[str(path)]
