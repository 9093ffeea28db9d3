"""What serving a merged bundle takes: time until it is ready, the replies of backbone and experts, and memory."""

import json
import os
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.merge.whole import Memory
from benchmarks.server.process import ServerProcess, server_process
from merge.bundle import open_bundle

PATIENCE = 3600
TOKENS = 8
CONTEXT = 2048
PROMPT = "word1 word2 word3"
"""In the words of `shape.write_tokenizer`."""

COUNTER = "anonymous and shared memory of the server's processes, without pages of files"


def measure_served(bundle: Path, quantisation: str | None) -> dict[str, Any]:
    """Start `overtone serve`, ask the backbone and each expert, and end it.

    Args:
        bundle: what it serves.
        quantisation: int8 or int4; None: the weights as they are stored.

    Returns:
        Seconds until it was ready, wall-clock and of its processors; by model, seconds of a reply of one token, and
        milliseconds of each further token, wall-clock and of the processors, which other work on the machine does not
        lengthen; and memory in MB: the most while it loaded, the most while it answered, and the most resident memory
        of the server's own process, pages of files included.

    Raises:
        RuntimeError: it did not start, or did not answer with status 200 and all tokens.
    """
    config = json.loads((bundle / "backbone" / "config.json").read_bytes())
    length = min(CONTEXT, int(config["max_position_embeddings"]))
    options = ["--max-num-seqs", "8", "--max-model-len", str(length), "--no-ui"]
    options += [] if quantisation is None else ["--quantization", quantisation]
    models = ["backbone", *(expert.name for expert in open_bundle(bundle).manifest.experts)]
    loading: list[Memory] = []

    def started(process: int) -> None:
        loading.append(Memory(process, every=0.2))

    with (
        server_process(bundle, options, patience=PATIENCE, started=started) as server,
        httpx.Client(timeout=PATIENCE) as http,
    ):
        (memory,) = loading
        ready = time.perf_counter()
        spent = _processor_seconds(server.pid)
        replies = {model: _asked(http, server, model) for model in models}
        status = Path(f"/proc/{server.pid}/status").read_text()
        memory.end()
        return {
            "quantisation": quantisation,
            "ready_seconds": server.ready_seconds,
            "ready_processor_seconds": spent,
            "replies": replies,
            "counter": COUNTER,
            "loading_mb": memory.peak(0, ready),
            "answering_mb": memory.peak(ready, time.perf_counter()),
            "peak_resident_mb": _field(status, "VmHWM"),
        }


def _asked(http: httpx.Client, server: ServerProcess, model: str) -> dict[str, float]:
    """A reply of one token, and each further one of a reply of `TOKENS` more."""
    first, first_spent = _seconds(http, server, model, 1)
    whole, whole_spent = _seconds(http, server, model, 1 + TOKENS)
    return {
        "first_token_seconds": first,
        "token_ms": 1e3 * (whole - first) / TOKENS,
        "token_processor_ms": 1e3 * (whole_spent - first_spent) / TOKENS,
    }


def _seconds(http: httpx.Client, server: ServerProcess, model: str, tokens: int) -> tuple[float, float]:
    """Wall-clock and processor seconds of a reply."""
    start, spent = time.perf_counter(), _processor_seconds(server.pid)
    body = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    reply = http.post(f"{server.url}/v1/completions", json=body)
    if reply.status_code != 200 or reply.json()["usage"]["completion_tokens"] != tokens:
        raise RuntimeError(f"{model} answered with status {reply.status_code}: {reply.text[:300]}")
    return time.perf_counter() - start, _processor_seconds(server.pid) - spent


def _processor_seconds(process: int) -> float:
    """What a process has used of all processors, in user and kernel mode."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _field(status: str, name: str) -> float:
    line = next(line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024 / 1e6
