"""The draws of one step, by what requests ask for.

Logits are random, of a vocabulary of 151,936; the time is that of one step's draws, without the model. No case may hold
up a step by more than `LIMIT_MS`, whatever a single request asks for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from serve.api.grammar.structure import INSTALLED, Structures
from serve.api.text.codec import TextCodec
from serve.engine.request import SamplingParams
from serve.engine.sampler import sample, token_outputs
from serve.engine.sampling_state import SamplingState
from serve.engine.scheduler import PROMPT_LOGPROBS_CHUNK

VOCAB = 151_936
END = 0
PROMPT = 8_192
LIMIT_MS = 200.0

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "size": {"type": "number"},
        "kind": {"enum": ["a", "b", "c"]},
    },
    "required": ["name", "tags", "size", "kind"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Case:
    """One kind of draw.

    Attributes:
        name: what the rows ask for.
        rows: in the step.
        ms: milliseconds of the step's draws, median.
        cpu_ms: of the process's CPU time, median: with one thread, what `ms` is on a machine that does nothing else.
    """

    name: str
    rows: int
    ms: float
    cpu_ms: float


def flat(rows: int) -> Tensor:
    """Logits of nearly equal probabilities."""
    return 0.1 * torch.randn(rows, VOCAB)


def peaked(rows: int) -> Tensor:
    """Logits with nearly all probability on twenty tokens."""
    logits = torch.randn(rows, VOCAB)
    logits[:, :20] += 15.0
    return logits


def plain_cases() -> Iterator[tuple[str, int, Callable[[int], Tensor], dict[str, Any]]]:
    """(name, rows, logits, sampling parameters) of the cases without a grammar."""
    letters = tuple((token,) for token in range(100, 126))
    phrases = tuple((token, token + 1, token + 2) for token in range(1000, 2024))
    yield "greedy", 8, flat, {"temperature": 0.0}
    yield "greedy", 64, flat, {"temperature": 0.0}
    yield "temperature", 8, flat, {}
    yield "top-p, peaked", 8, peaked, {"top_p": 0.9}
    yield "top-p, flat", 8, flat, {"top_p": 0.9}
    yield "top-p, flat", 64, flat, {"top_p": 0.9}
    yield "min-p, flat", 8, flat, {"min_p": 0.1}
    yield "top-k 100,000 and top-p, flat", 8, flat, {"top_k": 100_000, "top_p": 0.9}
    yield (
        "three penalties",
        8,
        peaked,
        {
            "repetition_penalty": 1.1,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.5,
        },
    )
    yield (
        "three penalties",
        64,
        peaked,
        {
            "repetition_penalty": 1.1,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.5,
        },
    )
    yield "1,024 bad words of one letter", 64, peaked, {"bad_words": letters * 40}
    yield "1,024 bad words of three tokens", 64, peaked, {"bad_words": phrases}
    yield "logit bias of 1,024 tokens", 64, peaked, {"logit_bias": {7 * n: 1.0 for n in range(1024)}}
    yield "logit bias of all tokens", 64, peaked, {"logit_bias": dict.fromkeys(range(VOCAB), 1.0)}
    yield "1,024 allowed tokens", 64, peaked, {"allowed_token_ids": tuple(range(0, 7168, 7))}
    yield "half of the tokens allowed", 64, peaked, {"allowed_token_ids": tuple(range(0, VOCAB, 2))}
    yield "20 log-probabilities", 64, peaked, {"logprobs": 20}


def measure_steps(rounds: int) -> dict[str, Any]:
    """Time the draws of a step in every case."""
    torch.manual_seed(0)
    prompt = tuple(torch.randint(VOCAB, (PROMPT,)).tolist())
    cases = [_time(name, make(rows), _states(rows, prompt, asked), rounds) for name, rows, make, asked in plain_cases()]
    scored = torch.randn(PROMPT_LOGPROBS_CHUNK, VOCAB)
    tokens, asked = list(range(len(scored))), [20] * len(scored)
    cases.append(
        _timed("echo with 20 log-probabilities", len(scored), rounds, lambda: token_outputs(scored, tokens, asked))
    )
    if INSTALLED:
        codec = large_codec()
        for rows in (1, 8, 64):
            cases.append(_grammar(codec, rows, rounds))
    return {
        "threads": torch.get_num_threads(),
        "vocab": VOCAB,
        "prompt": PROMPT,
        "cases": [asdict(case) for case in cases],
        "summary": {
            "worst_ms": max(case.ms for case in cases),
            "worst_cpu_ms": max(case.cpu_ms for case in cases),
            "limit_ms": LIMIT_MS,
        },
    }


def large_codec() -> TextCodec:
    """A byte-level tokenizer of `VOCAB` tokens: bytes, numbers, and made-up words with and without a blank before."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = dict.fromkeys(["<end>", *alphabet, *(str(n) for n in range(10, 1000)), 'Ġ"', '":', '",', '"}', "Ġ{", "]}"])
    syllables = [first + vowel for first in "bcdfghjklmnpqrstvwxyz" for vowel in "aeiou"]
    words = (one + two + three for one in syllables for two in ["", *syllables] for three in ["", *syllables])
    while len(pieces) < VOCAB:
        word = next(words)
        pieces |= dict.fromkeys([word, f"Ġ{word}"])
    vocabulary = {piece: number for number, piece in enumerate(list(pieces)[:VOCAB])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return TextCodec(tokenizer)


def _states(rows: int, prompt: tuple[int, ...], asked: dict[str, Any]) -> list[SamplingState]:
    params = SamplingParams(max_tokens=1 << 20, **asked)
    return [SamplingState(params.with_seed(row), prompt, row) for row in range(rows)]


def _time(name: str, logits: Tensor, states: list[SamplingState], rounds: int) -> Case:
    def step() -> None:
        for state, output in zip(states, sample(logits, states, (END,)), strict=True):
            state.append(output.token)

    return _timed(name, len(states), rounds, step)


def _grammar(codec: TextCodec, rows: int, rounds: int) -> Case:
    """Rows that all write JSON of a schema, each drawing on its own."""
    mask = Structures(codec, (END,)).mask("structured_outputs", "schema", SCHEMA)
    logits, params = torch.randn(rows, VOCAB), SamplingParams(max_tokens=1 << 20)
    states = [SamplingState(params, (), row, mask.copy()) for row in range(rows)]

    def step() -> None:
        for row, (state, output) in enumerate(zip(states, sample(logits, states, (END,)), strict=True)):
            if output.token == END:
                states[row] = SamplingState(params, (), row, mask.copy())
            else:
                state.append(output.token)

    return _timed("a JSON schema", rows, rounds, step)


def _timed(name: str, rows: int, rounds: int, step: Callable[[], object]) -> Case:
    step()
    wall, cpu = [], []
    for _ in range(rounds):
        began, used = time.perf_counter(), time.process_time()
        step()
        wall.append(1e3 * (time.perf_counter() - began))
        cpu.append(1e3 * (time.process_time() - used))
    return Case(name, rows, round(statistics.median(wall), 2), round(statistics.median(cpu), 2))
