"""One merge in this process: `python -m benchmarks.merge.child FOLDER METHOD COUNT OUT DTYPE PARAMETERS [loras]`.

Prints {"seconds", "processor_seconds", "peak_rss_mb", "start_rss_mb"}: seconds without imports, the most memory, and
the memory before the merge began.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.merge.memory import resident_mb
from benchmarks.merge.pool import lora_name, model_name
from merge.backbone import write_backbone
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.experts.calibration import make_batches
from merge.experts.running import assign, build_model
from merge.frank_wolfe import FrankWolfeConfig, LanguageModelLoss, merge_frank_wolfe
from merge.lora import open_adapter
from merge.methods import BoundMethod, find_method

FRANK_WOLFE = ("frank_wolfe_hard", "frank_wolfe_soft")
SEQUENCES, LENGTH = 8, 32
"""Random prompts of each of the two tasks of Frank-Wolfe's loss."""


def run(
    folder: Path,
    method: str,
    count: int,
    out: Path,
    dtype: torch.dtype,
    parameters: dict[str, Any],
    loras: bool = False,
) -> dict[str, float]:
    """Merge the first `count` models, or LoRAs, of a pool into `out`, an empty directory."""
    start_rss = resident_mb("VmRSS")
    start, spent = time.perf_counter(), time.process_time()
    base = open_checkpoint(folder / "base")
    fine_tunes: dict[str, Checkpoint] = (
        {lora_name(i): open_adapter(folder / lora_name(i), base) for i in range(count)}
        if loras
        else {model_name(i): open_checkpoint(folder / model_name(i)) for i in range(count)}
    )
    merge: BoundMethod
    if method in FRANK_WOLFE:
        model = build_model(base.path)
        assign(model, base)
        variant = method.removeprefix("frank_wolfe_")
        few = {"variant": variant, "steps": 2} | ({"soft": {"steps": 2}} if variant == "soft" else {})
        config = FrankWolfeConfig.model_validate({**few, **parameters})
        merge = merge_frank_wolfe(base, fine_tunes, _loss(model), config).method
    else:
        found = find_method(method)
        merge = found.bind(found.parameters.model_validate(parameters), {})
    write_backbone(out, base, fine_tunes, merge, out_dtype=dtype)
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - spent,
        "peak_rss_mb": resident_mb("VmHWM"),
        "start_rss_mb": start_rss,
    }


def _loss(model: Any) -> LanguageModelLoss:
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.config.vocab_size)
    batches = {}
    for task in ("first", "second"):
        ids = torch.randint(0, vocabulary, (SEQUENCES, LENGTH), generator=generator).tolist()
        halves = [row[: LENGTH // 2] for row in ids], [row[LENGTH // 2 :] for row in ids]
        batches[task] = make_batches(*halves, batch_size=4)
    return LanguageModelLoss(model, batches)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    result = run(
        Path(arguments[0]),
        arguments[1],
        int(arguments[2]),
        Path(arguments[3]),
        getattr(torch, arguments[4]),
        json.loads(arguments[5]),
        arguments[6:] == ["loras"],
    )
    print(json.dumps(result))
