"""What serving a merged bundle takes: time until it is ready, the first replies, and memory."""

import json
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.merge.whole import Memory
from benchmarks.server.process import server_process
from merge.bundle import open_bundle

PATIENCE = 1800
TOKENS = 8
CONTEXT = 2048
PROMPT = "word1 word2 word3"
"""In the words of `shape.write_tokenizer`."""


def measure_served(bundle: Path, quantisation: str | None) -> dict[str, Any]:
    """Start `overtone serve`, ask the backbone and one expert, and end it.

    Args:
        bundle: what it serves.
        quantisation: int8 or int4; None: the weights as they are stored.

    Returns:
        Seconds until it was ready, those of each request, and the most anonymous and shared memory in MB.

    Raises:
        RuntimeError: it did not start, or did not answer with status 200.
    """
    config = json.loads((bundle / "backbone" / "config.json").read_bytes())
    length = min(CONTEXT, int(config["max_position_embeddings"]))
    options = ["--max-num-seqs", "8", "--max-model-len", str(length), "--no-ui"]
    options += [] if quantisation is None else ["--quantization", quantisation]
    expert = open_bundle(bundle).manifest.experts[0].name
    with server_process(bundle, options, patience=PATIENCE) as server, httpx.Client(timeout=PATIENCE) as http:
        memory = Memory(server.pid)
        seconds = {}
        for model in ("backbone", expert):
            start = time.perf_counter()
            body = {"model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
            reply = http.post(f"{server.url}/v1/completions", json=body)
            if reply.status_code != 200 or reply.json()["usage"]["completion_tokens"] != TOKENS:
                raise RuntimeError(f"{model} answered with status {reply.status_code}: {reply.text[:300]}")
            seconds[model] = time.perf_counter() - start
        status = Path(f"/proc/{server.pid}/status").read_text()
        memory.end()
        return {
            "quantisation": quantisation,
            "ready_seconds": server.ready_seconds,
            "request_seconds": seconds,
            "peak_resident_mb": _field(status, "VmHWM"),
            "anonymous_mb": memory.peak(0, time.perf_counter()),
        }


def _field(status: str, name: str) -> float:
    line = next(line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024 / 1e6
