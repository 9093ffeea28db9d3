"""Choosing the next tokens of a batch, each by its own request's rules and its own stream of random numbers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from serve.engine.request import SamplingParams, TokenOutput
from serve.engine.token_mask import TokenMask

NARROW = 256
"""Candidates looked at first for top-p and min-p: enough for all but flat distributions, and much less than a sort."""

_MASK = (1 << 64) - 1


@dataclass
class SamplingState:
    """What the next draw of one sequence depends on besides its logits.

    Attributes:
        params: the request's rules.
        prompt: the prompt's tokens.
        seed: of the request's own random numbers.
        mask: the request's own, None where anything may be drawn.
        counts: how often each token was generated.
        output: the tokens generated so far.
    """

    params: SamplingParams
    prompt: tuple[int, ...]
    seed: int
    mask: TokenMask | None = None
    counts: Counter[int] = field(default_factory=Counter)
    output: list[int] = field(default_factory=list)

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.output)

    def append(self, token: int) -> None:
        """Note a generated token."""
        self.counts[token] += 1
        self.output.append(token)
        if self.mask is not None:
            self.mask.accept(token)

    def uniform(self) -> float:
        """The random number in [0, 1) for the next draw: a hash of seed and position, so preemption repeats it.

        Two rounds of the finaliser of Steele, Lea and Flood's SplitMix64 (OOPSLA 2014).
        """
        return (mix64(mix64(self.seed) + self.generated) >> 11) * 2.0**-53


def mix64(x: int) -> int:
    """A bijection of 64-bit integers whose outputs for consecutive inputs look independent."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def sample(logits: Tensor, states: Sequence[SamplingState], end_tokens: Sequence[int]) -> list[TokenOutput]:
    """Draw one token for each row.

    A row's result depends on the row and its state alone, not on the other rows.

    Args:
        logits: [R, vocab] floating.
        states: one a row.
        end_tokens: the model's own end-of-text tokens, held back while `min_tokens` is not reached.

    Returns:
        One output a row, with log-probabilities where the row asks for them.
    """
    raw = logits.to(torch.float32)
    adjusted = _adjusted(raw, states, end_tokens)
    tokens = _highest(adjusted)
    drawing = [row for row, state in enumerate(states) if not state.params.greedy]
    if drawing:
        tokens[drawing] = _draw(adjusted[drawing], [states[row] for row in drawing])
    asked = [None if state.params.logprobs is None else state.params.logprobs for state in states]
    return token_outputs(raw, tokens.tolist(), asked)


def _highest(logits: Tensor) -> Tensor:
    """The first highest of each row: [R, vocab] to [R] int64."""
    # For 8 rows of 16,000 numpy took 12 us, torch's argmax on the CPU 98.
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(dim=-1)


def token_outputs(logits: Tensor, tokens: Sequence[int], asked: Sequence[int | None]) -> list[TokenOutput]:
    """Tokens with log-probabilities under [R, vocab] float32 logits, each with as many alternatives as asked."""
    rows = [row for row, number in enumerate(asked) if number is not None]
    outputs = [TokenOutput(token) for token in tokens]
    if not rows:
        return outputs
    logprobs = torch.log_softmax(logits if len(rows) == len(tokens) else logits[rows], dim=-1)
    chosen = logprobs.gather(1, torch.tensor([[tokens[row]] for row in rows], device=logits.device)).squeeze(1).tolist()
    most = max(number for number in asked if number is not None)
    top = logprobs.topk(min(most, logits.shape[1]), dim=-1)
    for row, logprob, values, ids in zip(rows, chosen, top.values.tolist(), top.indices.tolist(), strict=True):
        number = asked[row]
        pairs = tuple(zip(ids[:number], values[:number], strict=True))
        outputs[row] = TokenOutput(tokens[row], logprob, pairs)
    return outputs


def _adjusted(raw: Tensor, states: Sequence[SamplingState], end_tokens: Sequence[int]) -> Tensor:
    """Logits after penalties, bias and held-back end tokens; the same tensor where no row has any."""
    adjusted = raw
    for row, state in enumerate(states):
        if not _is_adjusted(state):
            continue
        if adjusted is raw:
            adjusted = raw.clone()
        _adjust(adjusted[row], state, end_tokens)
    return adjusted


def _is_adjusted(state: SamplingState) -> bool:
    params = state.params
    penalised = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
    return bool(penalised or params.logit_bias or _is_banned(state))


def _is_banned(state: SamplingState) -> bool:
    """Whether any rule forbids tokens outright at the next draw."""
    params = state.params
    held_back = state.generated < params.min_tokens
    return bool(held_back or params.allowed_token_ids or params.bad_words or state.mask is not None)


def _adjust(row: Tensor, state: SamplingState, end_tokens: Sequence[int]) -> None:
    params = state.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*state.prompt, *state.counts}), device=row.device)
        values = row[seen]
        row[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if state.counts and (params.presence_penalty or params.frequency_penalty):
        ids = torch.tensor(list(state.counts), device=row.device)
        times = torch.tensor(list(state.counts.values()), dtype=torch.float32, device=row.device)
        row[ids] -= params.presence_penalty + params.frequency_penalty * times
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=row.device)
        row[ids] += torch.tensor(list(params.logit_bias.values()), dtype=torch.float32, device=row.device)
    if _is_banned(state):
        _ban(row, state, end_tokens)


def _ban(row: Tensor, state: SamplingState, end_tokens: Sequence[int]) -> None:
    params = state.params
    if params.allowed_token_ids is not None:
        kept = list(params.allowed_token_ids)
        values = row[kept]
        row.fill_(-torch.inf)
        row[kept] = values
    for *before, last in params.bad_words:
        if state.output[len(state.output) - len(before) :] == before:
            row[last] = -torch.inf
    if state.mask is not None:
        state.mask.mask(row)
    if state.generated < params.min_tokens:
        row[[*end_tokens, *params.stop_token_ids]] = -torch.inf
    if not bool((row > -torch.inf).any()):
        row[list(end_tokens) or slice(None)] = 0.0


def _draw(logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Draw by inverting the cumulated probabilities at each row's own random number: [R] int64."""
    device, params = logits.device, [state.params for state in states]
    temperatures = torch.tensor([p.temperature for p in params], device=device)
    uniform = torch.tensor([state.uniform() for state in states], dtype=torch.float64, device=device)
    probabilities = torch.softmax(logits / temperatures[:, None], dim=-1)
    tokens = torch.empty(len(states), dtype=torch.int64, device=device)
    widths = [_width(p, logits.shape[1]) for p in params]
    # Rows of one width together: how many candidates are sorted must not depend on the other rows.
    for width, group in groupby(sorted(range(len(states)), key=lambda row: widths[row]), key=lambda row: widths[row]):
        rows = list(group)
        if width == 0:
            tokens[rows] = _invert(probabilities[rows], uniform[rows])
        else:
            tokens[rows] = _draw_filtered(probabilities[rows], uniform[rows], [params[row] for row in rows], width)
    return tokens


def _width(params: SamplingParams, vocab: int) -> int:
    """How many of the most likely tokens can be candidates; 0: all of them, unsorted."""
    if 0 < params.top_k < vocab:
        return params.top_k
    return min(NARROW, vocab) if params.top_p < 1.0 or params.min_p > 0.0 else 0


def _draw_filtered(probabilities: Tensor, uniform: Tensor, params: Sequence[SamplingParams], width: int) -> Tensor:
    """Top-k, top-p and min-p, in this order, on the `width` most likely tokens; on all where those do not suffice."""
    device, vocab = probabilities.device, probabilities.shape[1]
    values, ids = probabilities.topk(width, dim=-1)
    by_top_k = torch.tensor([0 < p.top_k < vocab for p in params], device=device)
    total = torch.where(by_top_k, values.sum(dim=-1), 1.0)
    mass = torch.tensor([p.top_p for p in params], device=device) * total
    floor = torch.tensor([p.min_p for p in params], device=device) * values[:, 0]
    before = values.cumsum(dim=-1) - values
    kept = (before < mass[:, None]) & (values >= floor[:, None])
    tokens = ids.gather(1, _invert(values * kept, uniform)[:, None]).squeeze(1)
    if width < vocab:
        # Where the least likely candidate is still kept, tokens that were not looked at may have to be, too.
        open_ended = (kept[:, -1] & ~by_top_k).nonzero().squeeze(1).tolist()
        if open_ended:
            some = [params[row] for row in open_ended]
            tokens[open_ended] = _draw_filtered(probabilities[open_ended], uniform[open_ended], some, vocab)
    return tokens


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """First position whose cumulated weight exceeds `uniform` of the total: [R, n] and [R] to [R] int64."""
    cumulated = weights.cumsum(dim=-1, dtype=torch.float64)
    target = (uniform * cumulated[:, -1])[:, None]
    position = torch.searchsorted(cumulated, target, right=True).squeeze(1)
    # Rounding can put the target at the total itself: the last position of any weight is meant.
    last = (cumulated < cumulated[:, -1:]).sum(dim=-1)
    return torch.minimum(position, last)
