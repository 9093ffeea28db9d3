"""vLLM as a worker: run by its own environment's interpreter, with a model and, for LoRAs, a folder of adapters."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def main() -> None:
    """Answer questions until stdin ends."""
    model, length, *folder = sys.argv[1:]
    adapters = sorted(Path(folder[0]).iterdir()) if folder else []
    lora: dict[str, Any] = {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": 16} if adapters else {}
    engine = LLM(
        model,
        dtype="bfloat16",
        enforce_eager=True,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        max_model_len=int(length),
        max_num_seqs=8,
        **lora,
    )
    requests = {path.name: LoRARequest(path.name, i + 1, str(path)) for i, path in enumerate(adapters)}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        params = SamplingParams(temperature=0, max_tokens=question["tokens"], ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": ids} for ids in question["prompts"]]
        chosen = [requests.get(name) for name in question["adapters"]] if adapters else None
        start = time.perf_counter()
        engine.generate(prompts, params, lora_request=chosen, use_tqdm=False)
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
