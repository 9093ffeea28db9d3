"""Asking a served bundle: what goes in, what comes back, and the engine in this process, without HTTP."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from transformers import AutoTokenizer

from merge.bundle import Bundle
from serve.engine import AsyncEngine, EngineConfig, Request, SamplingParams, build_engine
from serve.router import Router


@dataclass(frozen=True)
class Question:
    """One greedy completion: `model` is "auto", "backbone" or an expert's name."""

    model: str
    prompt: str


@dataclass(frozen=True)
class Reply:
    """The completion's text, and what ran: an expert's name or "backbone"."""

    text: str
    ran: str


Ask = Callable[[Sequence[Question]], list[Reply]]
"""Answers every question, in their order; many at a time."""


@contextmanager
def engine_asker(bundle: Bundle, max_tokens: int, config: EngineConfig | None = None) -> Iterator[Ask]:
    """Start an engine on the bundle; it is shut down when the block is left."""
    router = Router.from_bundle(bundle)
    tokenizer = AutoTokenizer.from_pretrained(bundle.backbone_dir, local_files_only=True)
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    engine = build_engine(bundle, config or EngineConfig())
    numbers = count()

    async def ask_one(question: Question) -> Reply:
        expert = {"auto": router.decide(question.prompt).expert, "backbone": None}.get(question.model, question.model)
        request = Request(
            request_id=f"eval-{next(numbers)}",
            prompt=tuple(tokenizer(question.prompt)["input_ids"]),
            params=params,
            experts=((expert, 1.0),) if expert else (),
        )
        tokens: list[int] = []
        async for output in engine.generate(request):
            if output.finish_reason == "error":
                raise RuntimeError(f"the engine failed on {question}: {output.error}")
            tokens += [token.token for token in output.tokens]
        return Reply(str(tokenizer.decode(tokens, skip_special_tokens=True)), expert or "backbone")

    async def ask_all(questions: Sequence[Question]) -> list[Reply]:
        return list(await asyncio.gather(*map(ask_one, questions)))

    with asyncio.Runner() as runner:
        runner.run(_start(engine))
        try:
            yield lambda questions: runner.run(ask_all(questions))
        finally:
            runner.run(engine.shutdown(0.0))


async def _start(engine: AsyncEngine) -> None:
    engine.start()
