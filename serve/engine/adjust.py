"""Changing logits by the requests' own rules, for all rows at once: penalties, biases and bans."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.sampling import penalise
from serve.engine.sampling_state import SamplingState


def adjust(logits: Tensor, states: Sequence[SamplingState], end_tokens: tuple[int, ...]) -> None:
    """Apply penalties, then biases, then bans, in place.

    Where the bans leave a row no token at all, its end tokens are allowed, or any token where it has none.

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
        stuck = ~(logits[banned] > -torch.inf).any(dim=-1)
        for row in torch.tensor(banned)[stuck.cpu()].tolist():
            logits[row, list(states[row].params.ends(end_tokens)) or slice(None)] = 0.0


def _bias(logits: Tensor, states: Sequence[SamplingState]) -> None:
    biases = [
        (row, *rules.bias)
        for row, state in enumerate(states)
        if (rules := state.params.rules) is not None and rules.bias is not None
    ]
    for row, state in enumerate(states):
        if (rules := state.params.rules) is not None and rules.addend is not None:
            logits[row, : len(rules.addend)] += rules.addend.to(logits.device)
            if rules.closed:
                logits[row, len(rules.addend) :] = -torch.inf
    if biases:
        places = _places(logits, [row for row, _, _ in biases], [tokens for _, tokens, _ in biases])
        logits.view(-1)[places] += torch.cat([values for _, _, values in biases]).to(logits.device)


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
        logits[rows] = -torch.inf
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
    return torch.cat([ids + row * vocab for row, ids in zip(rows, tokens, strict=True)]).to(logits.device)
