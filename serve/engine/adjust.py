"""Changing logits by the requests' own rules, for all rows at once: penalties, biases and bans."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import on_gpu
from kernels.sampling import penalise
from serve.engine.sampling_state import SamplingState


def adjust(logits: Tensor, states: Sequence[SamplingState], end_tokens: tuple[int, ...]) -> None:
    """Apply penalties, then biases, then bans, in place, without waiting for a GPU.

    If the bans leave a row no token at all, its end tokens are allowed, or any token if it has none.

    Args:
        logits: [R, vocab] float32, contiguous.
        states: one a row.
        end_tokens: the model's own; a row's are held back while `min_tokens` is not reached.
    """
    penalise(logits, [state.row() for state in states])
    _bias(logits, states)
    banned = [row for row, state in enumerate(states) if state.banned]
    if banned:
        _ban(logits, states, end_tokens)
        _free(logits, banned, [tuple(states[row].params.ends(end_tokens)) for row in banned])


def _free(logits: Tensor, rows: Sequence[int], ends: Sequence[tuple[int, ...]]) -> None:
    """Allow rows without any allowed token their end tokens, or all tokens if they have none."""
    flat, device = logits.view(-1), logits.device
    stuck = ~(logits[_rows(rows, device)] > -torch.inf).any(dim=-1)
    tokens = [torch.tensor(own, dtype=torch.int64) for own in ends]
    owner = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(own) for own in ends]))
    places = _places(logits, rows, tokens)
    flat[places] = torch.where(stuck[on_gpu.brought(owner, device)], 0.0, flat[places])
    endless = [number for number, own in enumerate(ends) if not own]
    if endless:
        some, theirs = _rows([rows[number] for number in endless], device), stuck[_rows(endless, device)]
        logits[some] = torch.where(theirs[:, None], 0.0, logits[some])


def _bias(logits: Tensor, states: Sequence[SamplingState]) -> None:
    biases = [
        (row, *rules.bias)
        for row, state in enumerate(states)
        if (rules := state.params.rules) is not None and rules.bias is not None
    ]
    for row, state in enumerate(states):
        if (rules := state.params.rules) is not None and rules.addend is not None:
            logits[row, : len(rules.addend)] += on_gpu.brought(rules.addend, logits.device)
            if rules.closed:
                logits[row, len(rules.addend) :] = -torch.inf
    if biases:
        places = _places(logits, [row for row, _, _ in biases], [tokens for _, tokens, _ in biases])
        logits.view(-1)[places] += on_gpu.brought(torch.cat([values for _, _, values in biases]), logits.device)


def _ban(logits: Tensor, states: Sequence[SamplingState], end_tokens: tuple[int, ...]) -> None:
    flat = logits.view(-1)
    allowed = [
        (row, rules.allowed)
        for row, state in enumerate(states)
        if (rules := state.params.rules) is not None and rules.allowed is not None
    ]
    if allowed:
        rows = [row for row, _ in allowed]
        places = _places(logits, rows, [tokens for _, tokens in allowed])
        values = flat[places]
        logits[_rows(rows, logits.device)] = -torch.inf
        flat[places] = values
    forbidden: list[tuple[int, Tensor]] = []
    for row, state in enumerate(states):
        if state.params.rules is not None and state.params.rules.bad_words is not None:
            forbidden.append((row, state.params.rules.bad_words.completing(state.output)))
        if state.held_back:
            waiting = [*state.params.ends(end_tokens), *state.params.stop_token_ids]
            forbidden.append((row, torch.tensor(waiting, dtype=torch.int64)))
        if state.mask is not None:
            state.mask.mask(logits[row])
    if forbidden:
        flat[_places(logits, [row for row, _ in forbidden], [tokens for _, tokens in forbidden])] = -torch.inf


def _places(logits: Tensor, rows: Sequence[int], tokens: Sequence[Tensor]) -> Tensor:
    """Where some tokens of some rows lie in the flattened logits: int64 on their device."""
    vocab = logits.shape[1]
    places = torch.cat([ids + row * vocab for row, ids in zip(rows, tokens, strict=True)])
    return on_gpu.brought(places, logits.device)


def _rows(rows: Sequence[int], device: torch.device) -> Tensor:
    """Numbers of rows: int64 on a device."""
    return on_gpu.brought(torch.tensor(rows, dtype=torch.int64), device)
