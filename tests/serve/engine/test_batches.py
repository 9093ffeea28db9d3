"""The tokens of a request do not depend on the batch that computes them."""

import pytest

from serve.engine import Request, SamplingParams
from tests.serve.conftest import TinyBundle, drain, engine_of, greedy, run_alone, tokens_of
from tests.serve.engine.asked import MIXES, Steps, prompt, requests


@pytest.mark.promise(number=18)
def test_long_prompts_are_computed_in_chunks_beside_decoding(tiny: TinyBundle) -> None:
    steps = Steps()
    engine = engine_of(tiny.bundle, steps).engine
    engine.add(Request("decoding", prompt(1, 5), greedy(12)))
    engine.step()
    engine.add(Request("long", prompt(2, 100), greedy(1)))
    outputs = drain(engine)
    mixed = [record for record in steps.records if record.decode_tokens and record.prefill_tokens]
    assert len(mixed) == 4
    assert all(record.tokens <= 32 for record in steps.records)
    assert tokens_of(outputs["long"]) == tiny.greedy(prompt(2, 100), 1)


@pytest.mark.promise(number=1)
def test_greedy_output_is_the_same_alone_and_in_a_mixed_batch(tiny: TinyBundle) -> None:
    wanted = requests()
    engine = engine_of(tiny.bundle, enable_prefix_caching=False).engine
    alone = run_alone(engine, *wanted)
    for request in wanted:
        assert alone[request.request_id] == tiny.greedy(request.prompt, 8, *request.experts)
        engine.add(request)
    together = drain(engine)
    assert {name: tokens_of(outputs) for name, outputs in together.items()} == alone


@pytest.mark.promise(number=1)
def test_preemption_does_not_change_the_output(tiny: TinyBundle) -> None:
    steps = Steps()
    bytes_per_block = 4 * 3 * 2 * 2 * 8 * 4
    tight = engine_of(tiny.bundle, steps, max_model_len=84, kv_cache_bytes=24 * bytes_per_block).engine
    wanted = requests(tokens=20)
    for request in wanted:
        tight.add(request)
    together = drain(tight)
    assert sum(record.preemptions for record in steps.records) > 0
    for request in wanted:
        assert tokens_of(together[request.request_id]) == tiny.greedy(request.prompt, 20, *request.experts)
    assert tight.stats().kv_blocks_used == 0


@pytest.mark.promise(number=1)
def test_seeded_draws_do_not_depend_on_the_batch(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle).engine
    draws = SamplingParams(max_tokens=10, temperature=0.8, top_p=0.9, seed=5, ignore_eos=True)
    alone = run_alone(engine, Request("x", prompt(3, 9), draws, (("b", 1.0),)))["x"]
    for number in range(5):
        others = SamplingParams(max_tokens=12, temperature=1.5, top_k=5 + number)
        engine.add(Request(f"other{number}", prompt(number, 4 + number), others, MIXES[number]))
    engine.add(Request("x", prompt(3, 9), draws, (("b", 1.0),)))
    assert tokens_of(drain(engine)["x"]) == alone
