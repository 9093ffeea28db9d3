"""The same prompts on both engines, and the first tokens that differ."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.decode.peers import FOLDER, VLLM_SETTINGS
from benchmarks.interchange.bundle import export_adapters, write_bundle
from benchmarks.peers import Worker
from merge.bundle import Bundle
from serve.demo.zoo.tasks import TASKS
from serve.engine import AsyncEngine, EngineConfig, Request, SamplingParams, build_engine

TOKENS = 24
LENGTH = 256


@dataclass(frozen=True)
class Asked:
    """One prompt: its token ids, and the expert that continues it (None: the backbone)."""

    prompt: tuple[int, ...]
    expert: str | None


def compare(folder: Path, vllm: Path, prompts: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the comparison: the document that `--json` prints.

    Args:
        folder: for the bundle and the adapters; the caller removes it.
        vllm: interpreter of an environment that has vLLM.
        prompts: how many; every ninth is the backbone's, the others go round the experts.
        say: receives lines about the progress.

    Raises:
        PeerError: vLLM does not start, or fails.
    """
    say("writing the bundle and exporting its experts")
    bundle = write_bundle(folder / "bundle")
    errors = export_adapters(bundle, folder / "loras")
    asked = ask(bundle, prompts)
    say("continuing the prompts with Overtone")
    own = ours(bundle, asked)
    say("continuing the prompts with vLLM")
    other = theirs(bundle, folder / "loras", vllm, asked)
    return {"tokens_each": TOKENS, "export_error": max(errors.values()), **differences(asked, own, other)}


def ask(bundle: Bundle, prompts: int) -> list[Asked]:
    """Prompts of the zoo's tasks that no fine-tune was trained on."""
    tokenizer = AutoTokenizer.from_pretrained(bundle.backbone_dir, local_files_only=True)
    found: list[Asked] = []
    each = -(-prompts // len(TASKS))
    for examples in zip(*(task.generate("test", each, 0) for task in TASKS), strict=True):
        for task, example in zip(TASKS, examples, strict=True):
            expert = None if len(found) % 9 == 8 else task.name
            found.append(Asked(tuple(tokenizer(example.prompt)["input_ids"]), expert))
    return found[:prompts]


def ours(bundle: Bundle, asked: Sequence[Asked]) -> list[list[int]]:
    """Tokens of each prompt, all of them in one batch as far as it holds them."""
    engine = build_engine(bundle, EngineConfig(dtype="float32", device="cpu", max_model_len=LENGTH))
    return asyncio.run(_ours(engine, asked))


async def _ours(engine: AsyncEngine, asked: Sequence[Asked]) -> list[list[int]]:
    params = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)

    async def tokens(number: int, one: Asked) -> list[int]:
        experts = () if one.expert is None else ((one.expert, 1.0),)
        found: list[int] = []
        async for output in engine.generate(Request(str(number), one.prompt, params, experts)):
            if output.finish_reason == "error":
                raise RuntimeError(f"the engine failed: {output.error}")
            found += [token.token for token in output.tokens]
        return found

    engine.start()
    try:
        return list(await asyncio.gather(*(tokens(number, one) for number, one in enumerate(asked))))
    finally:
        await engine.shutdown(0.0)


def theirs(bundle: Bundle, loras: Path, vllm: Path, asked: Sequence[Asked]) -> list[list[int]]:
    """Tokens of each prompt by stock vLLM on the bundle's `backbone/` with the exported adapters."""
    arguments = (str(bundle.backbone_dir), str(LENGTH), "eager", "float32", str(loras))
    with Worker("vllm", [vllm, FOLDER / "vllm_worker.py", *arguments], VLLM_SETTINGS) as worker:
        question = {"prompts": [one.prompt for one in asked], "adapters": [one.expert for one in asked]}
        found: list[list[int]] = worker.ask({**question, "tokens": TOKENS})["tokens"]
        return found


def differences(asked: Sequence[Asked], own: Sequence[list[int]], other: Sequence[list[int]]) -> dict[str, Any]:
    """How many prompts have the same tokens, and for each other prompt the first token that differs."""
    parted = [
        {
            "prompt": number,
            "expert": one.expert,
            "at": next(
                (at for at, (a, b) in enumerate(zip(mine, its, strict=False)) if a != b), min(len(mine), len(its))
            ),
        }
        for number, (one, mine, its) in enumerate(zip(asked, own, other, strict=True))
        if mine != its
    ]
    distinct = len({tuple(tokens) for tokens in own})
    return {
        "prompts": len(asked),
        "experts": len({one.expert for one in asked} - {None}),
        "distinct_replies": distinct,
        "equal": len(asked) - len(parted),
        "parted": parted,
    }
