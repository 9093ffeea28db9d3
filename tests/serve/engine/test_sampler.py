import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from kernels.sampling.reference import NARROW
from serve.engine.request import SamplingParams
from serve.engine.sampler import sample
from serve.engine.sampling_state import SamplingState, mix64

VOCAB = 600


def state(seed: int = 0, prompt: tuple[int, ...] = (), output: tuple[int, ...] = (), **params: Any) -> SamplingState:
    made = SamplingState(SamplingParams(**{"max_tokens": 1000, **params}), prompt, seed)
    for token in output:
        made.append(token)
    return made


def random_logits(rows: int = 1, spread: float = 3.0, seed: int = 0) -> Tensor:
    return spread * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def draws(logits: Tensor, number: int = 4000, **params: Any) -> Counter[int]:
    """How often each token is drawn from one row of logits, with as many seeds."""
    outputs = sample(logits.expand(number, -1), [state(seed, **params) for seed in range(number)], ())
    return Counter(output.token for output in outputs)


def test_greedy_takes_the_lowest_of_equals() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[0, [7, 300]] = 5.0
    outputs = sample(logits, [state(temperature=0.0), state(temperature=0.0)], ())
    assert [output.token for output in outputs] == [7, 0]


def test_draws_follow_the_distribution() -> None:
    logits = torch.full((1, VOCAB), -torch.inf)
    logits[0, [3, 500, 599]] = torch.tensor([0.5, 0.3, 0.2]).log()
    found = draws(logits)
    assert set(found) == {3, 500, 599}
    for token, share in ((3, 0.5), (500, 0.3), (599, 0.2)):
        assert found[token] / 4000 == pytest.approx(share, abs=0.03)


def test_temperature_sharpens() -> None:
    logits = torch.full((1, VOCAB), -torch.inf)
    logits[0, :2] = torch.tensor([1.0, 0.0])
    share = torch.softmax(torch.tensor([1.0, 0.0]) / 0.5, 0)[0]
    assert draws(logits, temperature=0.5)[0] / 4000 == pytest.approx(float(share), abs=0.03)


def test_top_k_keeps_the_k_most_likely() -> None:
    logits = random_logits()
    assert set(draws(logits, top_k=3)) == set(logits[0].topk(3).indices.tolist())


@pytest.mark.parametrize("spread", [3.0, 0.1])
def test_top_p_keeps_the_least_set_of_that_mass(spread: float) -> None:
    """With a spread of 0.1 the set is larger than what is looked at first."""
    logits = random_logits(spread=spread)
    values, ids = torch.softmax(logits[0].double(), 0).sort(descending=True)
    kept = int((values.cumsum(0) < 0.6).sum()) + 1
    assert (kept > NARROW) == (spread == 0.1)
    found = draws(logits, number=6000, top_p=0.6)
    assert set(found) <= set(ids[:kept].tolist())
    assert len(found) > 0.95 * kept


def test_top_p_is_of_what_top_k_leaves() -> None:
    logits = torch.full((1, VOCAB), -torch.inf)
    logits[0, :4] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert set(draws(logits, top_k=2, top_p=0.5)) == {0}
    assert set(draws(logits, top_k=2, top_p=0.6)) == {0, 1}


@pytest.mark.parametrize("spread", [3.0, 0.1])
def test_min_p_is_relative_to_the_most_likely(spread: float) -> None:
    logits = random_logits(spread=spread)
    probabilities = torch.softmax(logits[0], 0)
    kept = set((probabilities >= 0.9 * probabilities.max()).nonzero().squeeze(1).tolist())
    assert set(draws(logits, min_p=0.9)) == kept


def test_penalties_are_those_of_their_formulas() -> None:
    logits = random_logits()
    base = logits[0].clone()
    expected = base.clone()
    for token in (1, 2, 9):
        expected[token] = expected[token] / 1.5 if base[token] > 0 else expected[token] * 1.5
    expected[2] -= 0.5 + 2 * 0.25
    expected[9] -= 0.5 + 0.25
    expected[4] += 7.0
    params = {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25, "logit_bias": {4: 7.0}}
    # The adjusted logits show in the shares of the draws.
    found = draws(logits, number=6000, prompt=(1, 2), output=(2, 2, 9), **params)
    shares = torch.softmax(expected, 0)
    for token in shares.topk(4).indices.tolist():
        assert found[token] / 6000 == pytest.approx(float(shares[token]), abs=0.03)
    assert torch.equal(logits[0], base)


def test_end_and_stop_tokens_wait_for_min_tokens() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [1, 2]] = 50.0
    held = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": (2,)}
    assert sample(logits, [state(output=(5,), **held)], (1,))[0].token == 0
    assert sample(logits, [state(output=(5, 6), **held)], (1,))[0].token == 1


def test_only_allowed_tokens_are_drawn() -> None:
    assert set(draws(random_logits(), number=500, allowed_token_ids=(3, 77, 599))) <= {3, 77, 599}
    greedy = state(temperature=0.0, allowed_token_ids=(3, 77))
    assert sample(random_logits(), [greedy], ())[0].token in {3, 77}


def test_a_bad_word_is_never_completed() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [5, 6]] = torch.tensor([50.0, 40.0])
    bad: dict[str, Any] = {"temperature": 0.0, "bad_words": ((4, 5), (6,))}
    assert sample(logits, [state(**bad)], ())[0].token == 5
    assert sample(logits, [state(output=(5,), **bad)], ())[0].token == 5
    assert sample(logits, [state(output=(9, 4), **bad)], ())[0].token == 0
    assert sample(logits, [state(temperature=0.0, bad_words=((5, 5, 5),), output=(5, 5))], ())[0].token == 6


class Alternate:
    """A mask that asks for tokens 10 and 11 in turn."""

    prepared: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.accepted: list[int] = []

    @classmethod
    def prepare(cls, masks: Sequence["Alternate"]) -> None:
        cls.prepared.append(len(masks))

    def mask(self, logits: Tensor) -> None:
        keep = 10 + len(self.accepted) % 2
        value = logits[keep].clone()
        logits.fill_(-torch.inf)
        logits[keep] = value

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def test_a_mask_follows_what_is_drawn() -> None:
    masked, mask = state(), Alternate()
    masked.mask = mask
    found = []
    for seed in range(4):
        logits = random_logits(2, seed=seed)
        found.append(sample(logits, [state(3), masked], ())[1].token)
        assert torch.isfinite(logits).all()
        masked.append(found[-1])
    assert found == mask.accepted == [10, 11, 10, 11]


def test_masks_are_prepared_together() -> None:
    Alternate.prepared.clear()
    masked = [state(), state(), state()]
    for one in masked[1:]:
        one.mask = Alternate()
    sample(random_logits(3), masked, ())
    assert Alternate.prepared == [2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_nothing_may_be_drawn_the_text_ends(temperature: float) -> None:
    impossible: dict[str, Any] = {"temperature": temperature, "allowed_token_ids": (4,), "bad_words": ((4,),)}
    assert sample(random_logits(), [state(**impossible)], (1,))[0].token == 1
    assert 0 <= sample(random_logits(), [state(**impossible)], ())[0].token < VOCAB


def test_a_seed_repeats_its_draws_in_any_batch() -> None:
    logits = random_logits(6)
    states = [
        state(9, temperature=0.7),
        state(1, top_k=7),
        state(2, top_p=0.8),
        state(3, min_p=0.05),
        state(4),
        state(5),
    ]
    together = sample(logits, states, ())
    for row, one in enumerate(states):
        assert sample(logits[row : row + 1], [one], ())[0] == together[row]
    flat = random_logits(spread=0.1)
    wide = state(7, top_p=0.9)
    assert sample(flat, [wide], ()) == sample(torch.cat([logits, flat]), [*states, wide], ())[-1:]


def test_draws_differ_between_positions_and_seeds() -> None:
    logits = torch.zeros(1, VOCAB)
    by_position = {sample(logits, [state(0, output=(5,) * n)], ())[0].token for n in range(20)}
    by_seed = {sample(logits, [state(seed)], ())[0].token for seed in range(20)}
    assert len(by_position) > 15
    assert len(by_seed) > 15


def test_uniform_numbers_are_uniform() -> None:
    numbers = torch.tensor([state(seed, output=(0,) * n).uniform() for seed in range(100) for n in range(20)])
    assert float(numbers.min()) >= 0.0
    assert float(numbers.max()) < 1.0
    assert float(numbers.histc(10, 0, 1).min()) > 150
    assert mix64(0) != mix64(1) != mix64(-1)


def test_logprobs_are_the_models_own() -> None:
    logits = random_logits(2)
    expected = torch.log_softmax(logits, -1)
    rows = [state(temperature=0.0, logprobs=3, logit_bias={5: 100.0}), state(temperature=0.0)]
    asked, silent = sample(logits, rows, ())
    assert asked.token == 5
    assert asked.logprob == pytest.approx(float(expected[0, 5]))
    assert asked.top_logprobs is not None
    assert [token for token, _ in asked.top_logprobs] == expected[0].topk(3).indices.tolist()
    assert (silent.logprob, silent.top_logprobs) == (None, None)
    only_chosen = sample(logits, [state(logprobs=0), state(logprobs=2)], ())
    assert only_chosen[0].top_logprobs == ()
    assert only_chosen[0].logprob is not None


def test_bfloat16_logits_are_widened() -> None:
    logits = random_logits().bfloat16()
    assert sample(logits, [state(temperature=0.0)], ())[0].token == int(logits.float().argmax())


def test_requests_draw_the_same_tokens_compiled_and_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they ask for: bias, bans, a mask, penalties, tokens held back, log-probabilities, filters."""
    asked: list[dict[str, Any]] = [
        {"temperature": 0.0, "logprobs": 2},
        {"top_p": 0.9, "logit_bias": {4: 7.0, 9: -3.0}},
        {"top_k": 40, "allowed_token_ids": tuple(range(0, 600, 7))},
        {"min_p": 0.05, "bad_words": ((5,), (2, 9)), "presence_penalty": 0.5},
        {"min_tokens": 30, "stop_token_ids": (2,), "temperature": 0.7},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "logprobs": 1},
        {"top_k": 30, "top_p": 0.8},
    ]

    def texts() -> list[list[Any]]:
        states = [state(number, prompt=(1, 2, 3), **params) for number, params in enumerate(asked)]
        states.append(state(9))
        states[-1].mask = Alternate()
        steps = []
        for step in range(12):
            outputs = sample(random_logits(len(states), 1.0, seed=step).bfloat16(), states, (1,))
            for one, output in zip(states, outputs, strict=True):
                one.append(output.token)
            steps.append(outputs)
        return steps

    compiled = texts()
    monkeypatch.setattr(sys.modules["kernels.compiled.library"], "library", lambda: None)
    assert texts() == compiled
