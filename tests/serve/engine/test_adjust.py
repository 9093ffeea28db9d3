"""Penalties, biases and bans on a device that tells the host nothing."""

import torch

from serve.engine import SamplingParams
from serve.engine.adjust import adjust
from serve.engine.sampling_state import SamplingState


def test_rules_ask_a_device_for_nothing() -> None:
    """Penalties, biases and bans, of rows that may be left without a token."""
    rules = [
        {"presence_penalty": 0.5, "repetition_penalty": 1.2},
        {"logit_bias": {3: 1.0, 4000: -1.0}, "min_tokens": 3},
        {"logit_bias": dict.fromkeys(range(4000), 0.5)},
        {"allowed_token_ids": (5, 7), "bad_words": ((5,), (1, 7))},
        {"allowed_token_ids": tuple(range(4000)), "ignore_eos": True},
    ]
    states = [SamplingState(SamplingParams(max_tokens=9, **one), (1, 2), 0, output=[3]) for one in rules]  # type: ignore[arg-type]
    logits = torch.empty(len(states), 5000, device="meta")
    adjust(logits, states, (2,))
    assert logits.shape == (len(states), 5000)


def test_a_row_without_a_token_may_end_and_others_stay_as_they_are() -> None:
    params = [{"allowed_token_ids": (5,), "bad_words": ((5,),)}, {"allowed_token_ids": (5,)}]
    for ends in ((2, 9), ()):
        states = [SamplingState(SamplingParams(max_tokens=9, **one), (1,), 0) for one in params]  # type: ignore[arg-type]
        logits = torch.randn(2, 11, generator=torch.Generator().manual_seed(0))
        before = logits.clone()
        adjust(logits, states, ends)
        allowed = logits.isfinite()
        assert allowed[0].nonzero().squeeze(1).tolist() == list(ends or range(11))
        assert (logits[0][allowed[0]] == 0).all()
        assert allowed[1].nonzero().squeeze(1).tolist() == [5]
        assert logits[1, 5] == before[1, 5]
