"""Made-up requests against the service's own contract.

python tests/fuzz_api.py ADDRESS CASES out.json      every endpoint of a running service, so many cases each (key: EMAIL_TRM_API_KEY)

The cases are schemathesis': what the OpenAPI document allows, and what it forbids, with all of its checks. An endpoint without a body
or a parameter has few different requests; the number made is reported.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import requests

# Any bytes are a valid `binary` string, but not all are a mail. Everything else must be as the schema says.
CONFIG = """
[[operations]]
include-path = "/v1/classify/raw"
[operations.checks]
positive_data_acceptance.expected-statuses = ["2xx", "422"]
"""


def run_contract(
    address: str,  # of a running service
    cases: int,  # per endpoint in the fuzzing phase
    phases: str = "examples,coverage,fuzzing",  # schemathesis' phases
    path: str = "",  # one endpoint; all if left out
    key: str = "",  # of the service
    seconds: int = 3000,  # at most
) -> dict[str, Any]:
    """Requests made, and what was wrong with the answers."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "schemathesis.toml").write_text(CONFIG, encoding="utf-8")
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--max-examples", str(cases),
            "--phases", phases, "-c", "all", "--continue-on-failure", "--seed", "0", "--request-timeout", "60",
            "--report", "json", "--report-json-path", "found.json"]
        command += ["--include-path", path] if path else []
        command += ["-H", f"Authorization: Bearer {key}"] if key else []
        said = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False)
        report = Path(folder, "found.json")
        if not report.exists():
            raise RuntimeError(f"schemathesis made no report: {said.stdout[-2000:]}{said.stderr[-2000:]}")
        found = json.loads(report.read_text(encoding="utf-8"))
    return {"cases": found["test_cases"]["generated"], "tested": found["operations"]["tested"], "errors": len(found["errors"]),
        "failures": [{"code": f["code"], "title": f["title"], "operations": f["operations"]} for f in found["failures"]]}


def main(address: str, cases: int, out: Path) -> int:
    """Every endpoint by itself, so that the number of cases is known for each."""
    key = os.environ.get("EMAIL_TRM_API_KEY", "")
    paths = requests.get(f"{address}/openapi.json", timeout=60).json()["paths"]
    found = {}
    for path in paths:
        found[path] = run_contract(address, cases, path=path, key=key)
        print(f"{path:22} {found[path]['cases']:6,} cases, {len(found[path]['failures'])} kinds of failure", flush=True)
    out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return int(any(f["failures"] or f["errors"] for f in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].rstrip("/"), int(sys.argv[2]), Path(sys.argv[3])))
