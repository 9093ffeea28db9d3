"""transformers and PEFT as a worker: run by the interpreter of their own environment.

Requests for several adapters share a batch through `adapter_names`; without adapters the model is transformers' own.
"""

import inspect
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, DynamicCache


def arrivals(model: Any, prompts: list[list[int]], tokens: int, options: dict[str, Any]) -> list[list[float]]:
    """When each greedy token of each prompt came, in seconds; the prompts have one length."""
    start = time.perf_counter()
    forward = getattr(model, "get_base_model", lambda: model)().forward
    # transformers 5.24 renamed the argument.
    name = "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
    step, cache, times = torch.tensor(prompts), {name: DynamicCache()}, []
    with torch.inference_mode():
        for _ in range(tokens):
            out = model(input_ids=step, use_cache=True, logits_to_keep=1, **cache, **options)
            step = out.logits[:, -1].argmax(-1, keepdim=True)
            times.append(time.perf_counter() - start)
    return [times] * len(prompts)


def main() -> None:
    """Answer questions until stdin ends."""
    path, folder = sys.argv[1:]
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).train(False)
    first, *others = sorted(Path(folder).iterdir())
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    mixed = PeftModel.from_pretrained(base, first, adapter_name=first.name)
    for adapter in others:
        mixed.load_adapter(str(adapter), adapter_name=adapter.name)
    mixed.to(torch.bfloat16).train(False)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        names = [name or "__base__" for name in question["adapters"]]
        uses = any(question["adapters"])
        options = {"adapter_names": names} if uses else {}
        answer = {"arrivals": arrivals(mixed if uses else plain, question["prompts"], question["tokens"], options)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
