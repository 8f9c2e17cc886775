"""Made-up requests against the service's own contract.

python tests/fuzz_api.py CASES out.json      starts a service; every endpoint, so many cases each, and the hostile messages of bombs.py

The cases are schemathesis': what the OpenAPI document allows, and what it forbids, with all of its checks. An endpoint without a body
or a parameter has few different requests; the number made is reported.
"""
import json
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import requests
from bombs import BOMBS

from email_trm.core.runs import write_json
from email_trm.serving.load import running

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


def run_hostile(address: str) -> dict[str, int]:
    """Every bomb as a raw message: how many answers had which status."""
    kind = {"content-type": "message/rfc822"}
    answers = (requests.post(f"{address}/v1/classify/raw", data=make(), headers=kind, timeout=60) for make in BOMBS.values())
    codes = Counter(str(answer.status_code) for answer in answers)
    return dict(sorted(codes.items()))


def main(cases: int, out: Path) -> int:
    """Every endpoint by itself, so that the number of cases is known for each."""
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    command = ["-c", "from email_trm.cli.cli import main; main()", "serve", "--port", str(port), "--log", "ERROR"]
    with tempfile.TemporaryDirectory() as store, running([*command, "--feedback", store], port) as (address, _):
        paths = requests.get(f"{address}/openapi.json", timeout=60).json()["paths"]
        endpoints = {}
        for path in paths:
            endpoints[path] = run_contract(address, cases, path=path)
            print(f"{path:22} {endpoints[path]['cases']:6,} cases, {len(endpoints[path]['failures'])} kinds of failure", flush=True)
        hostile = run_hostile(address)
    print("hostile messages:", hostile)
    write_json(out, {"endpoints": endpoints, "hostile": hostile})
    return int(any(f["failures"] or f["errors"] for f in endpoints.values()) or any(code >= "500" for code in hostile))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
