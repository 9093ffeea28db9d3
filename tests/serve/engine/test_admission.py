"""Which requests the engine refuses."""

import pytest

from serve.engine import InvalidRequest, PromptTooLong, QueueFull, Request, SamplingParams
from tests.serve.conftest import TinyBundle, engine_of, greedy
from tests.serve.engine.asked import Steps, prompt, until


@pytest.mark.promise(number=8)
async def test_a_full_queue_refuses(tiny: TinyBundle) -> None:
    steps = Steps()
    engine = engine_of(tiny.bundle, steps, max_num_seqs=1, max_num_queued_reqs=2)
    engine.start()
    streams = [engine.generate(Request(f"r{i}", prompt(i, 5), greedy(60))) for i in range(3)]
    with pytest.raises(QueueFull, match="3 requests are unfinished"):
        engine.generate(Request("more", (5,), greedy(1)))
    assert steps.rejects == ["QueueFull"]
    await until(lambda: engine.stats().waiting == 2)
    await streams[2].aclose()
    await until(lambda: engine.stats().waiting == 1)
    await engine.generate(Request("more", (5,), greedy(1))).aclose()
    await engine.shutdown(0)


@pytest.mark.promise(number=8)
async def test_a_queue_full_of_tokens_refuses(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle, max_num_seqs=1, max_num_queued_tokens=50)
    engine.start()
    streams = [engine.generate(Request("runs", prompt(0, 60), greedy(100)))]
    await until(lambda: engine.stats().running == 1)
    streams.append(engine.generate(Request("waits", prompt(1, 40), greedy(1))))
    with pytest.raises(QueueFull, match="40 tokens are waiting.*20 more they exceed 50"):
        engine.generate(Request("more", prompt(2, 20), greedy(1)))
    streams.append(engine.generate(Request("small", prompt(2, 10), greedy(1))))
    await engine.shutdown(0)


@pytest.mark.promise(number=19)
@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (Request("x", ()), InvalidRequest, "prompt is empty"),
        (Request("x", (97,)), InvalidRequest, "prompt has a token outside the vocabulary, 0 to 96"),
        (Request("x", (-1,)), InvalidRequest, "prompt has a token outside"),
        (Request("x", (5,) * 256), PromptTooLong, "256 tokens.*fit 256"),
        (Request("x", (5,), SamplingParams(logit_bias={97: 1.0})), InvalidRequest, "logit_bias has a token"),
        (Request("x", (5,), SamplingParams(stop_token_ids=(200,))), InvalidRequest, "stop_token_ids has a token"),
        (Request("x", (5,), experts=(("a", 1.0), ("a", 0.5))), InvalidRequest, "twice"),
        (Request("x", (5,), experts=(("a", float("nan")),)), InvalidRequest, "not finite"),
    ],
)
def test_only_token_ids_of_the_vocabulary_are_taken(
    tiny: TinyBundle, request_: Request, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        engine_of(tiny.bundle).engine.add(request_)
