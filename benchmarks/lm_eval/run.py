"""Running lm-eval, in a virtual environment of its own, against a server of this one."""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.lm_eval.tasks import write_tasks
from benchmarks.peers.environment import TORCH, Environment, PeerError, prepare
from benchmarks.server import server_process

LM_EVAL = Environment("lm-eval", (TORCH, "transformers==5.23.0", "lm_eval[api]==0.4.13"))
_SECONDS = 900


def evaluate(bundle: Path, count: int) -> dict[str, Any]:
    """Serve a bundle of the zoo and have lm-eval ask the routed model.

    Returns:
        `{"lm_eval", "prompts", "seconds", "results": {task: {metric: value}}}`, or `{"skipped": why}` where lm-eval
        cannot be installed.

    Raises:
        RuntimeError: lm-eval failed; the message ends with its last line.
    """
    try:
        python = prepare(LM_EVAL, say=lambda _: None)
    except PeerError as error:
        return {"skipped": str(error)}
    with tempfile.TemporaryDirectory() as folder, server_process(bundle, ["--log-level", "warning"]) as server:
        directory = Path(folder)
        names = write_tasks(directory, count)
        began = time.monotonic()
        _run(python, directory, names, server.url, bundle / "backbone")
        seconds = time.monotonic() - began
        (found,) = directory.rglob("results_*.json")
        document = json.loads(found.read_text())
    return {
        "lm_eval": document.get("lm_eval_version", LM_EVAL.packages[-1].partition("==")[2]),
        "prompts": count,
        "seconds": round(seconds, 1),
        "results": {name: _metrics(document["results"][name]) for name in names},
    }


def _run(python: Path, directory: Path, names: tuple[str, ...], url: str, tokenizer: Path) -> None:
    command: list[str | Path] = [
        *(python, "-m", "lm_eval", "--model", "local-completions", "--model_args", _model(url, tokenizer)),
        *("--tasks", ",".join(names), "--include_path", directory, "--output_path", directory / "out"),
        *("--batch_size", "4"),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(directory / "home")}
    key = {"OPENAI_API_KEY": "unused"}
    done = subprocess.run(
        command, env={**os.environ, **offline, **key}, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"lm-eval failed: {lines[-1]}")


def _model(url: str, tokenizer: Path) -> str:
    options = {
        "model": "auto",
        "base_url": f"{url}/v1/completions",
        "tokenizer": tokenizer,
        # Prompts come as token ids, to which a server adds nothing, and the zoo's models have only ever seen texts that
        # begin with this token: without it they write noise.
        "add_bos_token": True,
        "num_concurrent": 4,
        "max_retries": 1,
    }
    return ",".join(f"{name}={value}" for name, value in options.items())


def _metrics(result: dict[str, Any]) -> dict[str, float]:
    """lm-eval writes "metric,filter": value."""
    return {
        name.partition(",")[0]: round(value, 4)
        for name, value in result.items()
        if isinstance(value, float) and "stderr" not in name
    }
