"""OpenVINO GenAI as a worker: run by its own environment's interpreter, with a model, which it converts first.

Adapters are left out: given eight in one call it computes all requests with the first, without an error. A second
argument, `int8` or `int4`, has NNCF compress the weights: 8 bits with a scale a row, or 4 bits with one for 128 columns
(its default, and 8 bits for the embedding and the head).
"""

import json
import sys
import tempfile
import time
from typing import Any

import numpy as np
from openvino import Tensor
from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig


def settings(tokens: int) -> GenerationConfig:
    """Greedy, with an exact number of tokens."""
    config = GenerationConfig()
    config.max_new_tokens = tokens
    config.do_sample = config.apply_chat_template = False
    config.ignore_eos = True
    config.eos_token_id, config.stop_token_ids = 0, {0}
    return config


def converted(model: str, storage: str | None) -> Any:
    """The model in OpenVINO's format, with unchanged or compressed weights."""
    # 8-bit weights are its default for larger models; without a storage they are not compressed here.
    how: dict[str, Any] = {"load_in_8bit": False}
    if storage is not None:
        how = {"quantization_config": OVWeightQuantizationConfig(bits=int(storage.removeprefix("int")), sym=True)}
    return OVModelForCausalLM.from_pretrained(model, export=True, compile=False, **how)


def arrivals(pipeline: Any, prompts: list[list[int]], tokens: int) -> list[list[float]]:
    """When each token of each prompt came, in seconds."""
    came: list[list[float]] = [[] for _ in prompts]
    start = time.perf_counter()
    handles = [
        pipeline.add_request(number, Tensor(np.array([prompt], dtype=np.int64)), settings(tokens))
        for number, prompt in enumerate(prompts)
    ]
    while pipeline.has_non_finished_requests():
        pipeline.step()
        now = time.perf_counter() - start
        for number, handle in enumerate(handles):
            if handle.can_read():
                came[number] += [now] * sum(len(output.generated_ids) for output in handle.read().values())
    return came


def main() -> None:
    """Answer questions until stdin ends."""
    model, *storage = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="overtone-openvino-") as folder:
        converted(model, next(iter(storage), None)).save_pretrained(folder)
        scheduler = SchedulerConfig()
        scheduler.max_num_seqs = 8
        scheduler.max_num_batched_tokens = 4096
        scheduler.cache_size = 2
        scheduler.enable_prefix_caching = False
        pipeline = ContinuousBatchingPipeline(folder, scheduler, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        answer = {"arrivals": arrivals(pipeline, question["prompts"], question["tokens"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
