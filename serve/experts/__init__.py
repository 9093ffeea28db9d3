"""The expert store: files on disk, packed residuals on the host, and the device-side slots that sequences lease.

`version` is one content of one expert, with the errors of loading it and their log. `slots` assigns experts to slots,
`store` moves residuals between the tiers on a thread, and `adapters` reads LoRA adapters as experts.
"""

from serve.experts.adapters import AdapterRules
from serve.experts.slots import Lease
from serve.experts.store import EXPERT_SUFFIX, ExpertStore
from serve.experts.version import (
    ExpertInfo,
    ExpertLoadError,
    ExpertVersion,
    FailureLog,
    GenerationMismatch,
    LoadFailure,
)

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
