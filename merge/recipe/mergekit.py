"""mergekit's recipes (https://github.com/arcee-ai/mergekit): what means the same is read, the rest is named.

The keys `models`, `merge_method`, `base_model`, `parameters` and `out_dtype` mean the same here and there. `dtype` is
the arithmetic's alone (mergekit stores in it as well), and some defaults differ; docs/merging.md lists them.
"""

from typing import Any

UNSUPPORTED = {
    "slices": "merging slices of layers",
    "modules": "merging modules of several models",
    "chat_template": "choosing a chat template (the base's is used)",
}
"""mergekit's keys for what Overtone does not do."""

TOKENIZERS = ({"source": "base"}, "base")
"""The only tokenizer that is supported, as `tokenizer` and as `tokenizer_source` say it."""

WITHOUT_EFFECT = ("int8_mask",)
"""Parameters that change how mergekit stores something in between, and nothing of the outcome."""


def translated(document: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Rewrite a document in mergekit's terms, and list what of it is not supported.

    Any other document is returned as it is.
    """
    faults = [f"{key}: not supported: {what}" for key, what in UNSUPPORTED.items() if key in document]
    if isinstance(document.get("dtype"), str) and document["dtype"] in {"bfloat16", "float16"}:
        faults.append(
            f"dtype: {document['dtype']} is too coarse for task vectors, so arithmetic is in float32 or float64; to "
            f"store {document['dtype']}, write out_dtype: {document['dtype']}"
        )
    kept = {key: value for key, value in document.items() if key not in UNSUPPORTED}
    for key in ("tokenizer", "tokenizer_source"):
        source = kept.pop(key, None)
        if source is not None and source not in TOKENIZERS:
            faults.append(f"{key}: not supported: building a tokenizer (the base's is used); write source: base")
    if isinstance(kept.get("parameters"), dict):
        kept["parameters"] = {key: value for key, value in kept["parameters"].items() if key not in WITHOUT_EFFECT}
    if isinstance(kept.get("models"), list) and kept.get("merge_method") != "linear":
        kept["models"] = [entry for entry in kept["models"] if not _is_plain_base(entry, kept.get("base_model"))]
    return kept, faults


def _is_plain_base(entry: object, base: object) -> bool:
    """Whether a model of the list is the base once more, which adds no task vector and wants no expert."""
    return isinstance(entry, dict) and not set(entry) - {"model"} and entry.get("model") == base
