"""OpenVINO GenAI as a worker: run by its own environment's interpreter, with a model, which it converts first.

Adapters are left out: given eight in one call it computes all requests with the first, without an error.
"""

import json
import sys
import tempfile
import time

import numpy as np
from openvino import Tensor
from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig
from optimum.intel import OVModelForCausalLM


def settings(tokens: int) -> GenerationConfig:
    """Greedy, exactly so many tokens."""
    config = GenerationConfig()
    config.max_new_tokens = tokens
    config.do_sample = config.apply_chat_template = False
    config.ignore_eos = True
    config.eos_token_id, config.stop_token_ids = 0, {0}
    return config


def main() -> None:
    """Answer questions until stdin ends."""
    model = sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="overtone-openvino-") as folder:
        # 8-bit weights are its default for larger models; here they stay as they are.
        converted = OVModelForCausalLM.from_pretrained(model, export=True, compile=False, load_in_8bit=False)
        converted.save_pretrained(folder)
        scheduler = SchedulerConfig()
        scheduler.max_num_seqs = 8
        scheduler.max_num_batched_tokens = 4096
        scheduler.cache_size = 2
        scheduler.enable_prefix_caching = False
        pipeline = ContinuousBatchingPipeline(folder, scheduler, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        prompts = [Tensor(np.array([prompt], dtype=np.int64)) for prompt in question["prompts"]]
        start = time.perf_counter()
        pipeline.generate(prompts, [settings(question["tokens"])] * len(prompts))
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
