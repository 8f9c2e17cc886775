"""Private email triage you train on your own laptop, from your own mailbox, and can see through."""
import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1") # This is mail.

# Name -> module that owns it. Loaded on first use, so that `import email_trm` and `email-trm --help` stay quick.
_lazy = {
    "Email": "email_trm.mail.message",
    "EmailDatasetManager": "email_trm.data.manager",
    "EmailTRM": "email_trm.trm.model",
    "EmailTRMConfig": "email_trm.trm.config",
    "EmailTRMForSequenceClassification": "email_trm.trm.model",
    "EmailClassifier": "email_trm.serving.classifier",
    "EmailTrainingOrchestrator": "email_trm.training.orchestrator",
    "HardwareDetector": "email_trm.hardware.detect",
    "HyperparameterOptimizer": "email_trm.training.search", # Needs the extra `search`
    "MemoryManager": "email_trm.hardware.memory",
    "ResourceMonitor": "email_trm.hardware.monitor",
}
__all__ = ["Email", "EmailClassifier", "EmailDatasetManager", "EmailTRM", "EmailTRMConfig", "EmailTRMForSequenceClassification",
    "EmailTrainingOrchestrator", "HardwareDetector", "HyperparameterOptimizer", "MemoryManager", "ResourceMonitor"]


def __getattr__(name: str) -> Any:
    """Import a public name from the room that owns it, on first use."""
    if name in _lazy:
        return getattr(import_module(_lazy[name]), name)
    raise AttributeError(f"module 'email_trm' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, so that tab completion shows them before they are loaded."""
    return sorted([*__all__, "__version__"])
