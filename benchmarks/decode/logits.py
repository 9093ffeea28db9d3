"""Log-probabilities of the engine's batch of LoRAs beside PEFT's, in bfloat16, compared with PEFT's in float32."""

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.decode.cases import Case
from benchmarks.decode.ours import Ours

PROMPT = 32


def logprob_errors(
    ours: Ours, model: Path, adapters: Mapping[str, Path], vocabulary: int, say: Callable[[str], None]
) -> dict[str, float] | None:
    """Largest error of the likeliest tokens' log-probabilities, one prompt for each adapter, all in one batch.

    Returns:
        `overtone` and `peft`, both in bfloat16, against PEFT in float32; None if PEFT is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        say("log-probabilities are not compared: peft is not installed in this environment")
        return None
    say("comparing log-probabilities with PEFT's")
    names = list(adapters)
    prompts = Case("logits", tuple(names), PROMPT).prompts(vocabulary, 1)
    found = ours.top_logprobs(prompts, names)
    exact, rounded = (_logprobs(model, adapters, prompts, dtype) for dtype in (torch.float32, torch.bfloat16))
    own = peft = 0.0
    for row, tokens in enumerate(found):
        ids = torch.tensor(list(tokens))
        want = exact[row, ids]
        own = max(own, float((torch.tensor(list(tokens.values())) - want).abs().max()))
        peft = max(peft, float((rounded[row, ids] - want).abs().max()))
    return {"overtone": round(own, 4), "peft": round(peft, 4)}


def _logprobs(
    model: Path, adapters: Mapping[str, Path], prompts: Sequence[Sequence[int]], dtype: torch.dtype
) -> Tensor:
    """[prompts, vocabulary] float32: of the token after each prompt, with the adapter of the same number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own use of what transformers deprecates
        from peft import PeftModel

        (first, path), *others = adapters.items()
        wrapped: Any = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(model, dtype=dtype), path, adapter_name=first
        )
        for name, directory in others:
            wrapped.load_adapter(str(directory), adapter_name=name)
        wrapped.to(dtype).train(False)
        rows = []
        with torch.inference_mode():
            for name, prompt in zip(adapters, prompts, strict=True):
                wrapped.set_adapter(name)
                logits = wrapped(input_ids=torch.tensor([prompt]), logits_to_keep=1).logits
                rows.append(logits[0, -1].to(torch.float32).log_softmax(-1))
    return torch.stack(rows)
