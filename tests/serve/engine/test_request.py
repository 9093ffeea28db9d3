from typing import Any

import pytest

from serve.engine import SamplingParams


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("max_tokens", -1, "at least 0"),
        ("temperature", -0.1, "a number of at least 0"),
        ("temperature", float("nan"), "a number of at least 0"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("top_k", -1, "at least 0"),
        ("min_p", 1.5, "from 0 to 1"),
        ("presence_penalty", 2.5, "from -2 to 2"),
        ("frequency_penalty", -2.5, "from -2 to 2"),
        ("repetition_penalty", 0.0, "a number above 0"),
        ("logit_bias", {3: float("inf")}, "finite"),
        ("allowed_token_ids", (), "unset, or at least one token"),
        ("bad_words", ((1,), ()), "sequences of at least one token"),
        ("min_tokens", 17, "from 0 to max_tokens"),
        ("logprobs", 21, "from 0 to 20"),
        ("prompt_logprobs", -1, "from 0 to 20"),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field} is .*must be {expected}"):
        SamplingParams(**{field: value})


def test_defaults_are_in_range() -> None:
    assert not SamplingParams().greedy
    assert SamplingParams(temperature=0.0).greedy
