"""Choosing the next tokens of a batch, each by its own request's rules and its own stream of random numbers."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kernels import on_gpu, sampling
from serve.engine.adjust import adjust
from serve.engine.request import TokenOutput
from serve.engine.sampling_state import SamplingState
from serve.engine.token_rules import TokenMask

BLOCK = 1 << 18
"""Logits that are worked on together by torch on a CPU: what stays in its caches."""


def sample(logits: Tensor, states: Sequence[SamplingState], end_tokens: tuple[int, ...]) -> list[TokenOutput]:
    """Draw one token for each row.

    A row's result depends on the row and its state alone, not on the other rows.

    Args:
        logits: [R, vocab] floating.
        states: one a row.
        end_tokens: the model's own; a row's are held back while `min_tokens` is not reached.

    Returns:
        One output for each row, with log-probabilities if the row requests them.
    """
    _prepare_masks(states)
    ruled = [number for number, state in enumerate(states) if state.ruled]
    plain = [number for number, state in enumerate(states) if not state.ruled]
    if not ruled:
        tokens = sampling.sample(logits, plain, [state.row() for state in states])
    else:
        tokens = torch.empty(len(states), dtype=torch.int64, device=logits.device)
        if plain:
            tokens[_rows(plain, logits)] = sampling.sample(logits, plain, [states[number].row() for number in plain])
    for rows in _blocks(logits, ruled):
        theirs, places = [states[number] for number in rows], _rows(rows, logits)
        changed = logits[places].to(torch.float32)
        adjust(changed, theirs, end_tokens)
        settings = [state.row(penalised=False) for state in theirs]
        tokens[places] = sampling.sample(changed, range(len(rows)), settings)
    return token_outputs(logits, tokens.tolist(), [state.params.logprobs for state in states])


def token_outputs(logits: Tensor, tokens: Sequence[int], asked: Sequence[int | None]) -> list[TokenOutput]:
    """Tokens with log-probabilities under [R, vocab] floating logits, each with as many alternatives as asked."""
    outputs = [TokenOutput(token) for token in tokens]
    for rows in _blocks(logits, [row for row, number in enumerate(asked) if number is not None]):
        found = _with_logprobs(logits[rows], [tokens[row] for row in rows], [asked[row] or 0 for row in rows])
        for row, output in zip(rows, found, strict=True):
            outputs[row] = output
    return outputs


def _prepare_masks(states: Sequence[SamplingState]) -> None:
    by_kind: dict[type[TokenMask], list[TokenMask]] = {}
    for state in states:
        if state.mask is not None:
            by_kind.setdefault(type(state.mask), []).append(state.mask)
    for kind, masks in by_kind.items():
        kind.prepare(masks)


def _rows(rows: list[int], logits: Tensor) -> Tensor:
    """Numbers of rows: int64 on the logits' device."""
    return on_gpu.brought(torch.tensor(rows, dtype=torch.int64), logits.device)


def _blocks(logits: Tensor, rows: list[int]) -> Iterator[list[int]]:
    """Rows that are worked on together: on the CPU as many as stay in its caches, which also bounds the memory."""
    size = max(1, BLOCK // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(rows))
    return (rows[first : first + size] for first in range(0, len(rows), size))


def _with_logprobs(logits: Tensor, tokens: Sequence[int], asked: Sequence[int]) -> list[TokenOutput]:
    logprobs = torch.log_softmax(logits.to(torch.float32), dim=-1)
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None]).squeeze(1).tolist()
    top = logprobs.topk(min(max(asked), logits.shape[1]), dim=-1)
    return [
        TokenOutput(token, logprob, tuple(zip(ids[:number], values[:number], strict=True)))
        for token, number, logprob, values, ids in zip(
            tokens, asked, chosen, top.values.tolist(), top.indices.tolist(), strict=True
        )
    ]
