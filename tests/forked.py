"""Python in a process of its own, forked from one that has imported the large libraries and the package: importing them takes
longer than most tests.

`run_python` is `python -c CODE ARGUMENTS` in all but that; `email_trm` is the command as a shell would run it.
"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "from email_trm.cli.cli import main; main()"
SERVER = """
import json, os, sys, traceback
import captum.attr, datasets, fastapi, matplotlib.pyplot, nbdev.test, optuna, pandas, pandera, papermill.cli, pkgutil, seaborn, sklearn
import sqlalchemy, torch, torchmetrics, xgboost
from importlib import import_module
from transformers import AutoModel, Trainer
import email_trm
for module in pkgutil.walk_packages(email_trm.__path__, "email_trm."):
    try: import_module(module.name)
    except ImportError: pass  # an extra that is not installed
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.setsid()
            os.chdir(job["cwd"])
            os.environ.clear()
            os.environ.update(job["env"])
            new = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            files = [os.open(job["stdin"], os.O_RDONLY), *(os.open(job[name], new) for name in ("stdout", "stderr"))]
            for number, opened in enumerate(files): os.dup2(opened, number)
            sys.argv[:] = ["-c", *job["args"]]
            exec(compile(job["code"], "<string>", "exec"), {"__name__": "__main__"})
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
            if isinstance(end.code, str): print(end.code, file=sys.stderr)
        except BaseException: traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@cache
def server() -> subprocess.Popen[str]:
    """The process that forks, one for each worker."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", SERVER], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def run_python(code: str, *args: str, cwd: Path, stdin: bytes = b"", env: Mapping[str, str] | None = None,
        timeout: float = 420) -> subprocess.CompletedProcess[bytes]:
    """Run code with arguments. Raises `subprocess.TimeoutExpired`; the process and its children have ended then."""
    serving = server()
    assert serving.stdin and serving.stdout
    with tempfile.TemporaryDirectory() as place:
        names = {name: str(Path(place, name)) for name in ("stdin", "stdout", "stderr")}
        Path(names["stdin"]).write_bytes(stdin)
        job = {"code": code, "args": [str(a) for a in args], "cwd": str(cwd), "env": dict(env or os.environ), **names}
        serving.stdin.write(json.dumps(job) + "\n")
        serving.stdin.flush()
        pid, overdue = int(serving.stdout.readline()), threading.Event()

        def stop() -> None:
            overdue.set()
            os.killpg(pid, signal.SIGKILL)  # its own children too

        clock = threading.Timer(timeout, stop)
        clock.start()
        ended = int(serving.stdout.readline())
        clock.cancel()
        out, err = (Path(names[n]).read_bytes() if Path(names[n]).exists() else b"" for n in ("stdout", "stderr"))
    if overdue.is_set():
        raise subprocess.TimeoutExpired(args or code, timeout, out, err)
    return subprocess.CompletedProcess([code, *args], ended, out, err)


def email_trm(*args: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The command `email-trm`."""
    return run_python(COMMAND, *args, cwd=cwd, stdin=stdin)
