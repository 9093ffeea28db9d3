"""Memory that cutting an expert takes beyond the page cache, by generous estimates."""

from collections.abc import Collection
from math import prod

from merge.checkpoint import Checkpoint
from merge.experts import distill, factored, fit, layers
from merge.experts.config import Form
from merge.experts.mapped import HELD
from merge.methods.vectors import ROWS

LIBRARIES_BYTES = 400 << 20
"""Resident memory of a process that has imported torch and transformers."""

BYTES_A_PARAMETER = 20
"""Two decoders and their largest intermediates in float32, for each parameter: sparse experts, and small models."""

BYTES_AN_ENTRY = 32
"""Bytes for each entry of the tensor that is decomposed or cut: float32 and int64 copies. Of a large tensor, all but
8 of them are for some rows at a time."""


def job_bytes(
    base: Checkpoint, runs_models: bool, form: Form | None = "auto", changed: Collection[str] | None = None
) -> int:
    """Memory that a job takes at most; bytes.

    Without models it holds the tensor that is cut, with some rows of the two that it is the difference of, and the
    order of their entries. A job that runs models has, besides what `mapped` holds of two decoders, the moments of the
    layer that it fits, some layers' inputs or moments, hidden states, what the fine-tune computed, and the activations
    of a backward pass.

    Args:
        base: θ₀.
        runs_models: whether the job runs the models on prompts.
        form: of the expert.
        changed: names of the tensors that fine-tunes may change; None: all.
    """
    sizes = {name: prod(info.shape) for name, info in base.tensors.items()}
    largest = max((size for name, size in sizes.items() if changed is None or name in changed), default=0)
    cut = 8 * largest + (BYTES_AN_ENTRY - 8) * min(largest, ROWS)
    if not runs_models:
        return LIBRARIES_BYTES + cut
    whole = BYTES_A_PARAMETER * sum(sizes.values())
    if form == "sparse":
        return LIBRARIES_BYTES + whole
    tied = "lm_head.weight" not in sizes  # an embedding that is not also the head stays in the file's precision
    embeddings = sum(size for name, size in sizes.items() if tied and "embed" in name)
    widest = max((info.shape[-1] for name, info in base.tensors.items() if len(info.shape) == 2), default=0)
    decoders = 2 * (HELD + 4 * embeddings)
    kept = 2 * layers.HIDDEN + distill.KEPT
    streamed = decoders + 20 * widest**2 + factored.MEASURED + fit.BUDGET + distill.ACTIVATIONS + kept
    return LIBRARIES_BYTES + min(whole, streamed + cut)
