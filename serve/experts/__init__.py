"""The expert store: files on disk, packed residuals on the host, and the device-side slots that sequences lease.

`version` is one content of one expert, `slots` decides who sits where, `store` moves residuals between the tiers on
its own thread, `adapters` reads LoRA adapters as experts, `failures` logs what cannot be loaded.
"""

from serve.experts.adapters import AdapterRules
from serve.experts.failures import FailureLog
from serve.experts.slots import Lease
from serve.experts.store import EXPERT_SUFFIX, ExpertStore
from serve.experts.version import ExpertInfo, ExpertLoadError, ExpertVersion, GenerationMismatch, LoadFailure

__all__ = [
    "EXPERT_SUFFIX",
    "AdapterRules",
    "ExpertInfo",
    "ExpertLoadError",
    "ExpertStore",
    "ExpertVersion",
    "FailureLog",
    "GenerationMismatch",
    "Lease",
    "LoadFailure",
]
