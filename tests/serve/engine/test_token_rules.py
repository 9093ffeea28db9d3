import pickle

import pytest
import torch

from serve.engine.request import SamplingParams
from serve.engine.sampler import sample
from serve.engine.sampling_state import SamplingState
from serve.engine.token_rules import BadWords, TokenRules

VOCAB = 400


def test_without_rules_there_is_nothing_to_keep() -> None:
    assert TokenRules.of({}, None, ()) is None


def test_copies_of_a_request_share_what_was_prepared() -> None:
    params = SamplingParams(bad_words=((4, 5),) * 1000, logit_bias={3: 1.0})
    other = params.with_seed(7)
    assert other.seed == 7
    assert params.seed is None
    assert other.rules is params.rules
    assert pickle.loads(pickle.dumps(params)) == params


def test_repeated_bad_words_are_looked_at_once() -> None:
    words = BadWords(((7,),) * 1000 + ((4, 5), (4, 5), (3, 4, 6), (8, 4, 6)) * 500)
    assert words.completing([]).tolist() == [7]
    assert words.completing([5]).tolist() == [7]
    assert words.completing([4]).tolist() == [7, 5]
    assert words.completing([3, 4]).tolist() == [7, 5, 6]
    assert words.range == (3, 8)


@pytest.mark.parametrize("allowed", [(3, 77, 399), tuple(range(0, 300, 2)), tuple(range(VOCAB)), (0,), (399,)])
@pytest.mark.parametrize("bias", [{}, {5: 3.0, 350: -2.0}, {token: token / 100 for token in range(200)}, {399: 9.0}])
def test_many_and_few_tokens_mean_the_same(allowed: tuple[int, ...] | None, bias: dict[int, float]) -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0))
    expected = logits[0].clone()
    for token, value in bias.items():
        expected[token] += value
    for token in range(VOCAB):
        if token not in allowed:
            expected[token] = -torch.inf
    params = SamplingParams(max_tokens=9, temperature=0.0, logit_bias=bias, allowed_token_ids=allowed)
    assert sample(logits, [SamplingState(params, (), 0)], ())[0].token == int(expected.argmax())


def test_rows_with_different_rules_do_not_meet() -> None:
    logits = torch.randn(8, VOCAB, generator=torch.Generator().manual_seed(0))
    asked: list[dict[str, object]] = [
        {},
        {"logit_bias": {5: 50.0}},
        {"allowed_token_ids": (9, 11)},
        {"bad_words": ((3, 1), (2,)), "presence_penalty": 1.0},
        {"repetition_penalty": 1.5},
        {"logit_bias": dict.fromkeys(range(300), 2.0)},
        {"allowed_token_ids": tuple(range(100, 300)), "frequency_penalty": 2.0},
        {"min_tokens": 5, "top_p": 0.9, "stop_token_ids": (2,)},
    ]

    def states() -> list[SamplingState]:
        made = [SamplingState(SamplingParams(max_tokens=9, **params), (1, 2, 3), 5) for params in asked]  # type: ignore[arg-type]
        for one in made:
            one.append(3)
        return made

    together = sample(logits, states(), (1,))
    for row, one in enumerate(states()):
        assert sample(logits[row : row + 1], [one], (1,))[0] == together[row]
