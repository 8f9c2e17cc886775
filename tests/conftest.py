"""What all tests share: quiet, offline, one thread; and the real mail, where there is any."""
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))  # build.py, readme.py and drift.py are scripts, not a package

for name, value in {
    "MPLBACKEND": "Agg",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
}.items():
    os.environ.setdefault(name, value)


@pytest.fixture(autouse=True)
def only_when_asked(request: pytest.FixtureRequest) -> None:
    """Tests that take a minute run only with `-m slow`."""
    if request.node.get_closest_marker("slow") and "slow" not in (request.config.getoption("markexpr") or ""):
        pytest.skip("takes a minute; run with -m slow")


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real mail beside the checkout; the test is skipped where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "emails.jsonl.gz").exists():
        pytest.skip("no real mail here (../shared/data/emails.jsonl.gz): this part needs it")
    return folder
