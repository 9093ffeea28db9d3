"""mergekit's recipes (https://github.com/arcee-ai/mergekit): what means the same is read, the rest is named.

The keys `models`, `merge_method`, `base_model`, `parameters` and `out_dtype` mean the same here and there. A `dtype` of
16 bits is that of the stored tensors; the arithmetic is in float32. Some defaults differ, and a remark says so if a
recipe leaves them out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNSUPPORTED = {
    "slices": "merging slices of layers",
    "modules": "merging modules of several models",
    "chat_template": "choosing a chat template (the base's is used)",
}
"""mergekit's keys for what Overtone does not do."""

TOKENIZERS = {"tokenizer": {"source": "base"}, "tokenizer_source": "base"}
"""The only choice of a tokenizer that is supported, by the key that makes it."""

COARSE = ("bfloat16", "float16")
"""mergekit's dtypes that are too coarse for arithmetic on task vectors."""

COUNT_THE_BASE = ("linear", "karcher")
"""Methods that average models, so that the base among them counts."""

WITHOUT_EFFECT = ("int8_mask",)
"""Parameters that change how mergekit stores something in between, and nothing of the outcome."""


OTHER_DEFAULTS: Mapping[str, Mapping[str, tuple[object, object]]] = {
    "ties": {"density": (0.2, 1)},
    "dare_linear": {"density": (0.5, 1)},
    "dare_ties": {"density": (0.5, 1), "normalize": ("true", "false")},
    "breadcrumbs": {"density": (0.5, 1)},
    "breadcrumbs_ties": {"density": (0.5, 1)},
    "della": {"density": (0.5, 1)},
    "della_linear": {"density": (0.5, 1)},
}
"""Parameters by method whose defaults, here and in mergekit, are not the same."""


@dataclass(frozen=True)
class Translation:
    """A document in Overtone's terms.

    Attributes:
        document: what is left to read.
        faults: what of it is not supported.
        remarks: what is done otherwise than mergekit would.
    """

    document: dict[str, Any]
    faults: list[str]
    remarks: list[str]


def translated(document: dict[str, Any]) -> Translation:
    """Rewrite a document in mergekit's terms. Any other document is returned as it is."""
    faults = [f"{key}: not supported: {what}" for key, what in UNSUPPORTED.items() if key in document]
    remarks = []
    kept = {key: value for key, value in document.items() if key not in UNSUPPORTED}
    dtype = kept.get("dtype")
    if isinstance(dtype, str) and dtype in COARSE:
        kept["dtype"] = "float32"
        kept.setdefault("out_dtype", dtype)
        remarks.append(
            f"dtype: {dtype} is too coarse for task vectors: arithmetic is in float32, and {kept['out_dtype']} is "
            "stored"
        )
    if remarks or set(document) & set(TOKENIZERS) or _has(document.get("parameters"), *WITHOUT_EFFECT):
        remarks += _other_defaults(document)
    for key, supported in TOKENIZERS.items():
        source = kept.pop(key, None)
        if source is not None and source != supported:
            written = "{source: base}" if isinstance(supported, dict) else supported
            faults.append(f"{key}: not supported: building a tokenizer (the base's is used); write {key}: {written}")
    if isinstance(kept.get("parameters"), dict):
        kept["parameters"] = {key: value for key, value in kept["parameters"].items() if key not in WITHOUT_EFFECT}
    if isinstance(kept.get("models"), list) and kept.get("merge_method") not in COUNT_THE_BASE:
        kept["models"] = [entry for entry in kept["models"] if not _is_plain_base(entry, kept.get("base_model"))]
    return Translation(kept, faults, remarks)


def _other_defaults(document: dict[str, Any]) -> list[str]:
    """What a recipe that was written for mergekit leaves to defaults that are others here."""
    method, entries = document.get("merge_method"), document.get("models")
    if not isinstance(method, str) or not isinstance(entries, list):
        return []
    blocks = [entry.get("parameters") for entry in entries if isinstance(entry, dict) and set(entry) - {"model"}]
    return [
        f"{key} is not given: the default of {method} is {ours}, and mergekit's is {theirs}"
        for key, (ours, theirs) in OTHER_DEFAULTS.get(method, {}).items()
        if not _has(document.get("parameters"), key) and not (blocks and all(_has(block, key) for block in blocks))
    ]


def _has(block: object, *keys: str) -> bool:
    return isinstance(block, dict) and any(key in block for key in keys)


def _is_plain_base(entry: object, base: object) -> bool:
    """Whether a model of the list is the base once more, which adds no task vector and wants no expert."""
    return isinstance(entry, dict) and not set(entry) - {"model"} and entry.get("model") == base
