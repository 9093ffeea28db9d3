"""Hidden states of prompts, and log-probabilities of their ends."""

import pytest
import torch

from serve.engine import Output, Request
from serve.engine.request import Pooling
from tests.serve.conftest import TinyBundle, drain, engine_of, greedy

PROMPT = tuple(torch.randint(97, (70,), generator=torch.Generator().manual_seed(3)).tolist())
EXPERT = (("a", 1.0),)


def only(outputs: list[Output]) -> Output:
    (output,) = outputs
    return output


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("experts", [(), EXPERT], ids=["backbone", "expert"])
def test_pooled_states_are_those_of_transformers(
    tiny: TinyBundle, pooling: Pooling, experts: tuple[tuple[str, float], ...]
) -> None:
    engine = engine_of(tiny.bundle, max_num_batched_tokens=32).engine
    engine.add(Request("warm", PROMPT, greedy(1), experts))
    drain(engine)
    engine.add(Request("beside", PROMPT[:5], greedy(6), (("b", 1.0),)))
    engine.add(Request("x", PROMPT, greedy(0), experts, pooling=pooling))
    output = only(drain(engine)["x"])
    with torch.inference_mode():
        states = tiny.dense(*experts).model(torch.tensor([PROMPT])).last_hidden_state[0]
    expected = states.mean(0) if pooling == "mean" else states[-1]
    assert output.pooled is not None
    torch.testing.assert_close(torch.tensor(output.pooled), expected, atol=1e-4, rtol=1e-4)
    assert output.finish_reason == "length"
    assert (output.cached_tokens > 0) == (pooling == "last")


@pytest.mark.parametrize("start", [1, 2, 33, 65, 69])
def test_the_prefix_of_what_is_scored_comes_from_the_cache(tiny: TinyBundle, start: int) -> None:
    engine = engine_of(tiny.bundle).engine
    engine.add(Request("prefix", PROMPT[:start], greedy(0), EXPERT))
    engine.add(Request("whole", PROMPT, greedy(0, prompt_logprobs=0), EXPERT))
    whole = only(drain(engine)["whole"]).prompt_logprobs
    engine.add(Request("x", PROMPT, greedy(0, prompt_logprobs=0), EXPERT, scored_from=start))
    output = only(drain(engine)["x"])
    assert output.prompt_logprobs is not None
    assert whole is not None
    assert output.prompt_logprobs[:start] == (None,) * start
    for found, expected in zip(output.prompt_logprobs[start:], whole[start:], strict=True):
        assert found is not None
        assert expected is not None
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-4)
    assert (output.cached_tokens > 0) == (start > 32)
    assert output.cached_tokens < start
