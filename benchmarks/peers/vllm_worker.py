"""vLLM as a worker, run by its own environment's interpreter.

Arguments: a model, the longest sequence, `eager` or `compiled`, and for LoRAs a folder of adapters.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind


def arrivals(engine: Any, prompts: list[list[int]], loras: list[Any], params: SamplingParams) -> list[list[float]]:
    """When each token of each prompt came, in seconds; the loop is that of `LLM.generate`."""
    came: list[list[float]] = [[] for _ in prompts]
    start = time.perf_counter()
    for number, (prompt, lora) in enumerate(zip(prompts, loras, strict=True)):
        engine.add_request(str(number), {"prompt_token_ids": prompt}, params, lora_request=lora)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter() - start
        for output in outputs:
            came[int(output.request_id)] += [now] * len(output.outputs[0].token_ids)
    return came


def main() -> None:
    """Answer questions until stdin ends."""
    model, length, mode, *folder = sys.argv[1:]
    adapters = sorted(Path(folder[0]).iterdir()) if folder else []
    lora: dict[str, Any] = {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": 16} if adapters else {}
    engine = LLM(
        model,
        dtype="bfloat16",
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
        print(json.dumps({"arrivals": arrivals(engine.llm_engine, question["prompts"], loras, params)}), flush=True)


if __name__ == "__main__":
    main()
