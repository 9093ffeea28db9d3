import pytest

from benchmarks.decode.timing import Timing


def test_a_step_is_the_time_between_two_tokens():
    timing = Timing([[0.5, 0.51, 0.53, 0.54]])
    assert timing.first_ms == pytest.approx(500)
    assert timing.steps_ms == pytest.approx([10, 20, 10])
    assert timing.step_ms == pytest.approx(10)


def test_steps_beside_prompts_and_after_the_first_end_are_left_out():
    # A step of 10 ms a prompt, one prompt a step; then 1 ms for two requests together, and 0.5 ms for one alone.
    timing = Timing([[0.010, 0.020, 0.021, 0.022], [0.020, 0.021, 0.022, 0.0225]])
    assert timing.first_ms == pytest.approx(20)
    assert timing.steps_ms == pytest.approx([1, 1])


def test_the_prompt_that_was_last_decides_whichever_request_it_is():
    assert Timing([[0.3, 0.5], [0.1, 0.5]]).steps_ms == pytest.approx([200])


def test_requests_that_never_decode_together_have_no_step():
    with pytest.raises(ValueError, match="no step had all 2 requests: ask for more than 2 tokens"):
        _ = Timing([[0.1, 0.2], [0.3, 0.4]]).steps_ms
