"""JupyterLab with a notebook in a real browser: opened, run, looked at. Nothing leaves the machine.

    with Lab(folder) as lab, lab.open("demo.ipynb") as book:
        book.run_all()                       # waits until the kernel is idle; raises if a cell failed
        book.page.get_by_role("grid").click()  # `page` is Playwright's: everything it can do
        book.idle()                          # after something that makes the kernel work
        book.theme("dark")
        book.shot(folder / "dark.png")       # of the whole window; `shot(path, ".trm-inbox")` of one element
        book.check()                         # raises if our code complained, or anything asked for another host

`Lab` starts `jupyter lab` on a folder, with a token, a home and settings of its own, and a kernel that is this interpreter.
`Apps` does the same with Voila, which shows notebooks without their code.
It needs JupyterLab, Playwright and Chromium: `missing()` says what is not there.
"""
import atexit
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
SETTINGS = {  # extension/plugin -> what is set. Cells that are out of sight are rendered too, and nobody asks for news
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
WAIT = 120.0  # seconds for a server, a page or a kernel


def missing() -> str:
    """What is not installed here, in words; empty if all is there."""
    lacking = [name for name in ("jupyterlab", "anywidget", "playwright") if importlib.util.find_spec(name) is None]
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    return ", ".join(lacking + ([] if browser else ["Chromium"]))


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@cache
def playwright() -> Any:
    """Playwright, once in a process: a second one would wait for the first."""
    from playwright.sync_api import sync_playwright

    started = sync_playwright().start()
    atexit.register(started.stop)
    return started


class Tab:
    """A page that is open in the browser. Closed at the end of its `with` block."""

    def __init__(self, lab: "Lab", size: tuple[int, int]) -> None:
        self.lab = lab
        self.complaints: list[str] = []  # what our code wrote to the console as an error, and what was asked of other hosts
        self.context = lab.browser.new_context(viewport={"width": size[0], "height": size[1]})
        self.context.route("**/*", self._route)
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)  # For what a test waits for; running cells has a time of its own
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()

    def _route(self, route: Any) -> None:
        """Let requests to this machine through; note and refuse all others."""
        where = urlsplit(route.request.url)
        if where.scheme in ("data", "blob", "about") or where.hostname == "127.0.0.1":
            route.continue_()
        else:
            self.complaints.append(f"asks the network for {where.scheme}://{where.netloc}")
            route.abort()

    def _console(self, message: Any) -> None:
        """Keep errors. JupyterLab by itself writes none."""
        if message.type == "error":
            self.complaints.append(f"console: {message.text[:300]}")

    def shot(self, path: str | Path, element: str | None = None) -> Path:
        """A picture of the window, or of the first element that a CSS selector names."""
        target = self.page.locator(element).first if element else self.page
        target.screenshot(path=str(path))
        return Path(path)


class Notebook(Tab):
    """A notebook that is open in the browser. Made by `Lab.open`, closed at the end of its `with` block."""

    def __init__(self, lab: "Lab", path: Path, size: tuple[int, int]) -> None:
        super().__init__(lab, size)
        self.path = path
        self.page.goto(f"{lab.url}/lab/tree/{path.relative_to(lab.folder).as_posix()}?token={lab.token}&reset")
        self.page.wait_for_function("() => window.jupyterapp && window.jupyterapp.shell.currentWidget?.sessionContext", timeout=WAIT * 1000)
        self.page.evaluate("async () => { const w = jupyterapp.shell.currentWidget; await w.context.ready; await w.sessionContext.ready; }")
        self.page.evaluate("() => { const s = jupyterapp.shell; s.mode = 'single-document'; s.collapseLeft(); s.collapseRight(); }")

    def __exit__(self, *error: object) -> None:
        try:
            self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        finally:
            super().__exit__(*error)

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> None:
        """Do one of JupyterLab's commands, and wait for it."""
        self.page.evaluate("async ([name, args]) => { await jupyterapp.commands.execute(name, args); }", [name, arguments or {}])

    def run_all(self, timeout: float = 300) -> None:
        """Run every cell. Raises `AssertionError` with the name of the error if one failed."""
        self.page.evaluate("() => { window.ran = false; "
            "jupyterapp.commands.execute('notebook:run-all-cells').finally(() => { window.ran = true; }); }")
        self.page.wait_for_function("() => window.ran", timeout=timeout * 1000)
        self.idle(timeout)
        if wrong := self.errors():
            raise AssertionError(f"{self.path.name}: {'; '.join(wrong)}")

    def idle(self, timeout: float = 60) -> None:
        """Wait until the kernel has nothing to do, and a moment more for the browser."""
        done = "() => jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'"
        self.page.wait_for_function(done, timeout=timeout * 1000)
        self.page.wait_for_timeout(300)
        self.page.wait_for_function(done, timeout=timeout * 1000)

    def errors(self) -> list[str]:
        """Errors in the outputs of cells: number of the cell, kind, message."""
        found = self.page.evaluate("() => jupyterapp.shell.currentWidget.content.model.toJSON().cells.flatMap((c, n) => "
            "(c.outputs || []).filter(o => o.output_type === 'error').map(o => `cell ${n}: ${o.ename}: ${o.evalue}`))")
        return list(found)

    def python(self, code: str) -> str:
        """Run a line of Python in the notebook's kernel; what it prints comes back."""
        return str(self.page.evaluate("""async code => {
            const future = jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({ code, store_history: false });
            let out = "";
            const said = { stream: c => c.text, error: c => c.ename };
            future.onIOPub = m => { out += said[m.header.msg_type]?.(m.content) ?? ""; };
            await future.done;
            return out;
        }""", code))

    def theme(self, name: str) -> None:
        """Show the notebook in `light` or `dark`."""
        self.page.emulate_media(color_scheme="dark" if name == "dark" else "light")
        self.command("apputils:change-theme", {"theme": THEMES[name]})
        self.page.wait_for_function("light => document.body.dataset.jpThemeLight === light", arg="false" if name == "dark" else "true")
        self.page.wait_for_timeout(300)

    def check(self) -> None:
        """Raise `AssertionError` with everything that was wrong so far."""
        if wrong := self.complaints + self.errors():
            raise AssertionError(f"{self.path.name}:\n  " + "\n  ".join(dict.fromkeys(wrong)))


class Lab:
    """A running JupyterLab on a folder, and a browser. Both end with the `with` block, and what they wrote goes."""

    ready = "/api/status"  # What answers once the server is up

    def __init__(self, folder: str | Path, environment: dict[str, str] | None = None) -> None:
        self.folder, self.environment = Path(folder).resolve(), environment or {}
        self.token, self.port = secrets.token_hex(16), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.home = Path(tempfile.mkdtemp(prefix="email-trm-lab-"))

    def __enter__(self) -> Self:
        try:
            self._settle()
            self._start()
            self._browse()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if browser := self.__dict__.pop("browser", None):
            browser.close()
        if server := self.__dict__.pop("server", None):
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    def _settle(self) -> None:
        """A kernel that is this interpreter, and settings."""
        run = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": run, "display_name": "this Python", "language": "python"}
        kernel = self.home / "data" / "kernels" / "python3" / "kernel.json"
        place = self.home / "config" / "lab" / "user-settings"
        settings = {place / f"{name}.jupyterlab-settings": value for name, value in SETTINGS.items()}
        for path, value in {kernel: spec, **settings}.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value), encoding="utf-8")

    def _command(self) -> list[str]:
        """What starts the server."""
        return [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser",
            f"--ServerApp.root_dir={self.folder}", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={self.port}",
            "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}",
            "--LabApp.extension_manager=readonly", "--LabApp.news_url=", "--ServerApp.log_level=WARN"]

    def _start(self) -> None:
        """Start the server and wait until it answers."""
        places = {"HOME": self.home, "JUPYTER_DATA_DIR": self.home / "data", "JUPYTER_CONFIG_DIR": self.home / "config",
            "JUPYTER_RUNTIME_DIR": self.home / "runtime", "IPYTHONDIR": self.home / "ipython", "JUPYTER_PLATFORM_DIRS": "0"}
        own = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY_"))} | {k: str(v) for k, v in places.items()}
        self.log = self.home / "server.log"
        with self.log.open("wb") as out:
            self.server = subprocess.Popen(self._command(), cwd=self.folder, env=own | self.environment, stdout=out, stderr=out)
        end = time.monotonic() + WAIT
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}{self.ready}?token={self.token}", timeout=5):
                    return
            except OSError:
                if self.server.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{type(self).__name__} did not start:\n{self.log.read_text(errors='replace')[-2000:]}") from None
                time.sleep(0.2)

    def _browse(self) -> None:
        """Start the browser."""
        chromium = next(filter(None, map(shutil.which, NAMES)))
        self.browser = playwright().chromium.launch(executable_path=chromium, args=ARGUMENTS)

    def open(self, name: str | Path, size: tuple[int, int] = (1400, 1000)) -> Notebook:
        """Open a notebook of the folder in a window of this size."""
        return Notebook(self, self.folder / name, size)


class Apps(Lab):
    """Voila on the notebooks of a folder, as `make apps` starts it, and a browser."""

    ready = "/voila/static/voila.js"

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, {"JUPYTER_PATH": str(Path(__file__).resolve().parent.parent / "deploy" / "apps")})

    def _command(self) -> list[str]:
        """What starts the server."""
        return [sys.executable, "-m", "voila", "--no-browser", "--template=email-trm", "--classic-tree",
            "--Voila.ip=127.0.0.1", f"--port={self.port}", str(self.folder)]

    def show(self, name: str, size: tuple[int, int] = (1400, 1000)) -> Tab:
        """Open `render/NAME.ipynb` and wait until its last cell has run; with an empty name, the list of notebooks."""
        tab = Tab(self, size)
        tab.page.goto(f"{self.url}/voila/{name or 'tree'}", timeout=WAIT * 2000)
        return tab


def write_notebook(path: str | Path, *cells: str) -> Path:
    """A notebook with these code cells."""
    empty = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    made = [empty | {"id": f"c{n}", "source": source} for n, source in enumerate(cells)]
    kernel = {"kernelspec": {"display_name": "this Python", "language": "python", "name": "python3"}}
    Path(path).write_text(json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return Path(path)
