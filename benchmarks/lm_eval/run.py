"""Running lm-eval, in a separate virtual environment, against a server of this one."""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.lm_eval.tasks import write_tasks
from benchmarks.peers.environment import Environment, PeerError, prepare
from benchmarks.server import server_process

LM_EVAL = Environment("lm-eval", ("transformers==5.23.0", "lm_eval[api]==0.4.13"))
_SECONDS = 900


def evaluate(bundle: Path, count: int) -> dict[str, Any]:
    """Serve a bundle of the zoo and have lm-eval ask the routed model.

    Returns:
        `{"lm_eval", "prompts", "seconds", "results": {task: {metric: value}}}`, or `{"skipped": why}` if lm-eval
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
        completions = _model(server.url, bundle / "backbone")
        documents = [
            _run(python, directory, "local-completions", completions, names.completions, "--batch_size", "4"),
            _run(python, directory, "local-chat-completions", _chat(server.url), names.chats, "--apply_chat_template"),
        ]
        seconds = time.monotonic() - began
    return {
        "lm_eval": documents[0].get("lm_eval_version", LM_EVAL.packages[-1].partition("==")[2]),
        "prompts": count,
        "seconds": round(seconds, 1),
        "results": {name: _metrics(found) for document in documents for name, found in document["results"].items()},
    }


def _run(
    python: Path, directory: Path, client: str, options: str, names: tuple[str, ...], *arguments: str
) -> dict[str, Any]:
    """Have one of lm-eval's clients ask for some tasks; the document that it writes."""
    out = directory / client
    command: list[str | Path] = [
        *(python, "-m", "lm_eval", "--model", client, "--model_args", options),
        *("--tasks", ",".join(names), "--include_path", directory, "--output_path", out),
        *arguments,
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(directory / "home")}
    key = {"OPENAI_API_KEY": "unused"}
    done = subprocess.run(
        command, env={**os.environ, **offline, **key}, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"lm-eval failed: {lines[-1]}")
    (found,) = out.rglob("results_*.json")
    document: dict[str, Any] = json.loads(found.read_text())
    return document


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


def _chat(url: str) -> str:
    return f"model=auto,base_url={url}/v1/chat/completions,num_concurrent=4,max_retries=1"


def _metrics(result: dict[str, Any]) -> dict[str, float]:
    """lm-eval writes "metric,filter": value."""
    return {
        name.partition(",")[0]: round(value, 4)
        for name, value in result.items()
        if isinstance(value, float) and "stderr" not in name
    }
