"""The engine's promises, one test or more for each number in the design."""

import asyncio
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch

from merge.bundle import Expert, write_expert
from serve.engine import (
    Draining,
    Engine,
    EngineDead,
    InvalidRequest,
    PromptTooLong,
    QueueFull,
    Request,
    SamplingParams,
    SilentObserver,
    StepRecord,
    UnknownExpert,
)
from serve.experts import ExpertLoadError
from serve.model import ResidualBanks
from tests.serve.conftest import (
    TinyBundle,
    drain,
    engine_of,
    greedy,
    random_expert,
    run_alone,
    tokens_of,
)

MIXES: list[tuple[tuple[str, float], ...]] = [
    (),
    (("a", 1.0),),
    (("b", 1.0),),
    (("c", 1.0),),
    (("d", 1.0),),
    (("a", 0.25), ("b", 0.75)),
    (("c", 0.5), ("a", -0.5), ("d", 1.0)),
]


class Steps(SilentObserver):
    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.rejects: list[str] = []
        self.loads: list[tuple[str, str]] = []

    def on_step(self, record: StepRecord) -> None:
        self.records.append(record)

    def on_reject(self, reason: str) -> None:
        self.rejects.append(reason)

    def on_expert_load(self, name: str, seconds: float, nbytes: int, tier: str) -> None:
        assert seconds >= 0
        assert nbytes > 0
        self.loads.append((name, tier))


def prompt(number: int, length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(number)
    return tuple(torch.randint(2, 97, (length,), generator=generator).tolist())


def requests(tokens: int = 8) -> list[Request]:
    """Two requests of each mix, with prompts from 1 token to longer than a step."""
    return [
        Request(f"r{i}", prompt(i, 1 + 7 * i % 60), greedy(tokens), MIXES[i % len(MIXES)])
        for i in range(2 * len(MIXES))
    ]


# 1. Continuous batching, chunked prefill, paged blocks; prefix keys over content.


def test_1_long_prompts_are_computed_in_chunks_beside_decoding(tiny: TinyBundle) -> None:
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


def test_1_equal_prefixes_are_computed_once(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle).engine
    shared, experts = prompt(1, 21), (("a", 1.0),)
    engine.add(Request("first", (*shared, 5), greedy(4), experts))
    assert drain(engine)["first"][-1].cached_tokens == 0
    engine.add(Request("second", (*shared, 7, 8), greedy(4), experts))
    second = drain(engine)["second"]
    assert second[-1].cached_tokens == 20
    assert tokens_of(second) == tiny.greedy((*shared, 7, 8), 4, *experts)


@pytest.mark.parametrize("other", [(), (("b", 1.0),), (("a", 0.5),), (("a", 1.0), ("b", 0.5))])
def test_1_prefixes_under_other_experts_or_gates_are_not_shared(
    tiny: TinyBundle, other: tuple[tuple[str, float], ...]
) -> None:
    engine = engine_of(tiny.bundle).engine
    engine.add(Request("first", prompt(1, 21), greedy(4), (("a", 1.0),)))
    drain(engine)
    engine.add(Request("second", prompt(1, 21), greedy(4), other))
    second = drain(engine)["second"]
    assert second[-1].cached_tokens == 0
    assert tokens_of(second) == tiny.greedy(prompt(1, 21), 4, *other)


def test_1_a_reload_with_other_weights_does_not_meet_old_keys_and_values(tiny: TinyBundle, tmp_path: Path) -> None:
    engine = engine_of(tiny.bundle).engine
    experts = (("a", 1.0),)
    before = run_alone(engine, Request("old", prompt(1, 21), greedy(6), experts))["old"]
    other = random_expert(tiny.model, tiny.bundle.manifest.backbone_digest, "a", seed=77)
    write_expert(tmp_path / "a.safetensors", other)
    engine.experts.load("a", tmp_path / "a.safetensors")
    engine.add(Request("new", prompt(1, 21), greedy(6), experts))
    outputs = drain(engine)["new"]
    assert outputs[-1].cached_tokens == 0
    after = tokens_of(outputs)
    assert after == TinyBundle(tiny.bundle, tiny.model, {"a": other}).greedy(prompt(1, 21), 6, ("a", 1.0))
    assert after != before
    engine.experts.load("a", tiny.bundle.expert_path("a"))
    engine.add(Request("back", prompt(1, 21), greedy(6), experts))
    outputs = drain(engine)["back"]
    assert outputs[-1].cached_tokens == 20
    assert tokens_of(outputs) == before


# 2. Greedy output is the same alone and in any mixed batch.


def test_2_greedy_output_is_the_same_alone_and_in_a_mixed_batch(tiny: TinyBundle) -> None:
    wanted = requests()
    engine = engine_of(tiny.bundle, enable_prefix_caching=False).engine
    alone = run_alone(engine, *wanted)
    for request in wanted:
        assert alone[request.request_id] == tiny.greedy(request.prompt, 8, *request.experts)
        engine.add(request)
    together = drain(engine)
    assert {name: tokens_of(outputs) for name, outputs in together.items()} == alone


def test_2_preemption_does_not_change_the_output(tiny: TinyBundle) -> None:
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


def test_2_seeded_draws_do_not_depend_on_the_batch(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle).engine
    draws = SamplingParams(max_tokens=10, temperature=0.8, top_p=0.9, seed=5, ignore_eos=True)
    alone = run_alone(engine, Request("x", prompt(3, 9), draws, (("b", 1.0),)))["x"]
    for number in range(5):
        others = SamplingParams(max_tokens=12, temperature=1.5, top_k=5 + number)
        engine.add(Request(f"other{number}", prompt(number, 4 + number), others, MIXES[number]))
    engine.add(Request("x", prompt(3, 9), draws, (("b", 1.0),)))
    assert tokens_of(drain(engine)["x"]) == alone


# 3. No silent backbone.


def test_3_an_unknown_expert_is_refused(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle).engine
    with pytest.raises(UnknownExpert, match="no expert 'e'; there are: a, b, c, d"):
        engine.add(Request("x", (5,), greedy(1), (("e", 1.0),)))
    assert not engine.has_work


def test_3_an_expert_whose_tensors_match_nothing_is_a_load_error(tiny: TinyBundle, tmp_path: Path) -> None:
    engine = engine_of(tiny.bundle).engine
    a = tiny.experts["a"]
    renamed = Expert("e", a.backbone_digest, 0.1, {f"base.{name}": delta for name, delta in a.sparse.items()}, {})
    write_expert(tmp_path / "e.safetensors", renamed)
    with pytest.raises(ExpertLoadError, match=r"'e' cannot be served.*'base\.model\..*does not have"):
        engine.experts.load("e", tmp_path / "e.safetensors")
    assert engine.experts.get("e") is None


def test_3_an_expert_of_another_backbone_is_a_load_error(tiny: TinyBundle, tmp_path: Path) -> None:
    engine = engine_of(tiny.bundle).engine
    write_expert(tmp_path / "e.safetensors", random_expert(tiny.model, "0" * 64, "e", 0))
    with pytest.raises(ExpertLoadError, match="cut against backbone 000000000000"):
        engine.experts.load("e", tmp_path / "e.safetensors")


# 4. Loading happens outside the loop.


def test_4_decoding_goes_on_while_an_expert_loads(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(tiny.bundle).engine
    gate = threading.Event()
    load = ResidualBanks.load
    monkeypatch.setattr(ResidualBanks, "load", lambda *arguments: (gate.wait(20), load(*arguments)))
    engine.add(Request("plain", prompt(1, 5), greedy(10)))
    engine.add(Request("waits", prompt(1, 5), greedy(3), (("a", 1.0),)))
    steps = [output for _ in range(10) for output in engine.step()]
    assert tokens_of(steps) == tiny.greedy(prompt(1, 5), 10)
    assert engine.idle is False
    assert engine.step() == []
    assert engine.idle is True
    gate.set()
    assert tokens_of(drain(engine)["waits"]) == tiny.greedy(prompt(1, 5), 3, ("a", 1.0))


def test_4_a_bad_expert_fails_its_requests_and_nothing_else(tmp_path: Path, tiny: TinyBundle) -> None:
    shutil.copytree(tiny.bundle.path, tmp_path / "bundle")
    bundle = TinyBundle(type(tiny.bundle)(tmp_path / "bundle", tiny.bundle.manifest), tiny.model, tiny.experts)
    engine = engine_of(bundle.bundle).engine
    bundle.bundle.expert_path("b").write_bytes(b"damaged")
    engine.add(Request("bad", prompt(1, 5), greedy(3), (("b", 1.0),)))
    engine.add(Request("good", prompt(1, 5), greedy(3), (("a", 1.0),)))
    outputs = drain(engine)
    assert outputs["bad"][-1].finish_reason == "error"
    assert outputs["bad"][-1].error == "expert 'b' cannot be served: its file is damaged"
    failure = outputs["bad"][-1].expert_error
    assert failure is not None
    assert failure.reason == "damaged"
    assert tokens_of(outputs["good"]) == tiny.greedy(prompt(1, 5), 3, ("a", 1.0))
    shutil.copy(tiny.bundle.expert_path("b"), bundle.bundle.expert_path("b"))
    engine.add(Request("again", prompt(1, 5), greedy(3), (("b", 1.0),)))
    assert tokens_of(drain(engine)["again"]) == tiny.greedy(prompt(1, 5), 3, ("b", 1.0))


# 5. More experts than slots.


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_5_more_experts_than_slots(tiny: TinyBundle, slots: int) -> None:
    engine = engine_of(tiny.bundle, max_expert_slots=slots).engine
    wanted = [Request(f"r{i}", prompt(i, 6), greedy(5), MIXES[1 + i % 4]) for i in range(12)]
    for request in wanted:
        engine.add(request)
    outputs = drain(engine)
    for request in wanted:
        assert tokens_of(outputs[request.request_id]) == tiny.greedy(request.prompt, 5, *request.experts)


def test_5_a_mix_of_more_experts_than_slots_is_refused(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle, max_expert_slots=1).engine
    with pytest.raises(InvalidRequest, match="mixes 2; at most 1"):
        engine.add(Request("x", (5,), greedy(1), (("a", 0.5), ("b", 0.5))))


def test_5_the_least_recently_used_expert_leaves(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle, max_expert_slots=2).engine
    for number, name in enumerate("abac"):
        run_alone(engine, Request(f"r{number}", prompt(1, 5), greedy(2), ((name, 1.0),)))
    assert engine.stats().experts_resident == ("a", "c")


def test_5_a_flood_for_one_expert_does_not_starve_another(tiny: TinyBundle) -> None:
    """With one slot, held by a flood that never ends, a late request for another expert is served all the same."""
    engine = engine_of(tiny.bundle, max_expert_slots=1, max_num_seqs=2).engine
    number = 0

    def flood() -> None:
        nonlocal number
        engine.add(Request(f"flood{number}", prompt(number, 10), greedy(4), (("a", 1.0),)))
        number += 1

    for _ in range(20):
        flood()
    for _ in range(3):
        engine.step()
    engine.add(Request("late", prompt(1, 5), greedy(2), (("b", 1.0),)))
    late: list[int] = []
    for _ in range(400):
        for output in engine.step():
            if output.request_id == "late":
                late += tokens_of([output])
            elif output.finish_reason is not None:
                flood()
        if len(late) == 2:
            break
        if engine.idle:
            time.sleep(0.002)
    assert late == tiny.greedy(prompt(1, 5), 2, ("b", 1.0))


def test_5_experts_share_the_seats_fairly(tiny: TinyBundle) -> None:
    """Twenty requests for one expert that came first do not keep one for another waiting until they are done."""
    engine = engine_of(tiny.bundle, max_num_seqs=2).engine
    run_alone(engine, Request("loads b", prompt(0, 5), greedy(1), (("b", 1.0),)))
    for number in range(20):
        engine.add(Request(f"flood{number}", prompt(number, 8), greedy(3), (("a", 1.0),)))
    engine.add(Request("other", prompt(1, 5), greedy(3), (("b", 1.0),)))
    finished = [name for name, outputs in _in_order(engine) if outputs]
    assert finished.index("other") <= 3


def _in_order(engine: Engine) -> list[tuple[str, bool]]:
    """Names in the order in which their requests finished."""
    order = []
    while engine.has_work:
        order += [(output.request_id, True) for output in engine.step() if output.finish_reason is not None]
        if engine.idle:
            time.sleep(0.002)
    return order


# 6. The queue is bounded.


async def test_6_a_full_queue_refuses(tiny: TinyBundle) -> None:
    steps = Steps()
    engine = engine_of(tiny.bundle, steps, max_num_seqs=1, max_num_queued_reqs=2)
    engine.start()
    streams = [engine.generate(Request(f"r{i}", prompt(i, 5), greedy(60))) for i in range(3)]
    with pytest.raises(QueueFull, match="3 requests are unfinished"):
        engine.generate(Request("more", (5,), greedy(1)))
    assert steps.rejects == ["QueueFull"]
    await _until(lambda: engine.stats().waiting == 2)
    await streams[2].aclose()
    await _until(lambda: engine.stats().waiting == 1)
    await engine.generate(Request("more", (5,), greedy(1))).aclose()
    await engine.shutdown(0)


async def test_6_a_queue_full_of_tokens_refuses(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle, max_num_seqs=1, max_num_queued_tokens=50)
    engine.start()
    streams = [engine.generate(Request("runs", prompt(0, 60), greedy(100)))]
    await _until(lambda: engine.stats().running == 1)
    streams.append(engine.generate(Request("waits", prompt(1, 40), greedy(1))))
    with pytest.raises(QueueFull, match="40 tokens are waiting.*20 more they exceed 50"):
        engine.generate(Request("more", prompt(2, 20), greedy(1)))
    streams.append(engine.generate(Request("small", prompt(2, 10), greedy(1))))
    await engine.shutdown(0)


# 7. A client that goes away frees its blocks within one step.


def test_7_an_abort_frees_blocks_and_slots_at_once(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle, max_expert_slots=1).engine
    engine.add(Request("runs", prompt(0, 30), greedy(50), (("a", 1.0),)))
    engine.add(Request("waits", prompt(0, 30), greedy(2), (("b", 1.0),)))
    while not engine.stats().kv_blocks_used:
        engine.step()
    output = engine.abort("runs")
    assert output is not None
    assert output.finish_reason == "abort"
    assert engine.stats().kv_blocks_used == 0
    assert engine.abort("runs") is None
    assert tokens_of(drain(engine)["waits"]) == tiny.greedy(prompt(0, 30), 2, ("b", 1.0))


@pytest.mark.parametrize("how", ["close", "cancel", "drop"])
async def test_7_leaving_a_stream_frees_its_blocks(tiny: TinyBundle, how: str) -> None:
    steps = Steps()
    engine = engine_of(tiny.bundle, steps)
    engine.start()
    stream = engine.generate(Request("x", prompt(0, 30), greedy(200), (("a", 1.0),)))
    await anext(stream)
    if how == "close":
        await stream.aclose()
    elif how == "drop":
        del stream
    else:

        async def read() -> None:
            async for _ in stream:
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    left = len(steps.records)
    await _until(lambda: engine.stats().kv_blocks_used == 0)
    # One step may have been under way, and another begun before the loop saw the abort.
    assert len(steps.records) <= left + 2
    assert engine.stats().running == 0
    await engine.shutdown(0)


# 8. Draining.


async def test_8_shutdown_finishes_what_runs_and_admits_nothing(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle)
    engine.start()
    stream = engine.generate(Request("x", prompt(0, 5), greedy(20)))
    await anext(stream)
    stopping = asyncio.create_task(engine.shutdown(20))
    await asyncio.sleep(0)
    with pytest.raises(Draining):
        engine.generate(Request("y", (5,), greedy(1)))
    rest = [output async for output in stream]
    assert rest[-1].finish_reason == "length"
    await stopping
    with pytest.raises(EngineDead, match="not running"):
        engine.health()


async def test_8_shutdown_aborts_what_takes_too_long(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle)
    engine.start()
    stream = engine.generate(Request("x", prompt(0, 5), greedy(250)))
    await anext(stream)
    await engine.shutdown(0)
    assert [output async for output in stream][-1].finish_reason == "abort"
    assert engine.stats().kv_blocks_used == 0


# 10. Token ids only.


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
def test_10_only_token_ids_of_the_vocabulary_are_taken(
    tiny: TinyBundle, request_: Request, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        engine_of(tiny.bundle).engine.add(request_)


async def _until(holds: object, patience: float = 20.0) -> None:
    assert callable(holds)
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)
