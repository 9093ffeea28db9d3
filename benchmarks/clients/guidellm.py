"""guidellm, the load generator of the vLLM project, against a server of ours."""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import TORCH, Environment, PeerError, prepare
from benchmarks.server import server_process

GUIDELLM = Environment("guidellm", (TORCH, "guidellm==0.8.1"))
ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
_PROMPT_TOKENS, _TOKENS, _USERS = 32, 16, 4
_SECONDS = 600


def run_guidellm(bundle: Path, options: list[str], requests: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Serve a bundle and have guidellm stream `requests` replies of the backbone from each route.

    Args:
        bundle: what is served.
        options: of the server.
        requests: of each route.
        say: receives a line about an installation.

    Returns:
        Route → its requests that were `successful`, `errored` and `incomplete`, beside the version in `guidellm`; or
        `{"skipped": why}` if it cannot be installed.

    Raises:
        RuntimeError: it failed; the message ends with its last line.
    """
    try:
        python = prepare(GUIDELLM, say)
    except PeerError as error:
        return {"skipped": str(error)}
    found: dict[str, Any] = {"guidellm": GUIDELLM.packages[-1].partition("==")[2]}
    with tempfile.TemporaryDirectory() as folder, server_process(bundle, options) as server:
        for route in ROUTES:
            found[route] = _stream(python, Path(folder), server.url, route, bundle / "backbone", requests)
    return found


def _stream(python: Path, folder: Path, url: str, route: str, tokenizer: Path, requests: int) -> dict[str, int]:
    result = folder / f"{route.replace('/', '-')}.json"
    command: list[str | Path] = [
        *(python.parent / "guidellm", "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={url},model=backbone,request_format={route}"),
        *("--profile", f"kind=concurrent,streams={_USERS}", "--constraint", f"kind=max_requests,count={requests}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={_PROMPT_TOKENS},output_tokens={_TOKENS}"),
        *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}", "--output", f"kind=json,path={result}"),
    ]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=folder, env=offline
    )
    if done.returncode or not result.is_file():
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"guidellm failed: {lines[-1]}")
    return counts(result.read_text())


def counts(report: str) -> dict[str, int]:
    """How the requests of its JSON report ended."""
    (benchmark,) = json.loads(report)["benchmarks"]
    made = benchmark["scheduler_metrics"]["requests_made"]
    return {status: int(made[status] or 0) for status in ("successful", "errored", "incomplete")}
