"""Requests that end early: aborts, abandoned streams and shutdown."""

import asyncio

import pytest

from serve.engine import Draining, EngineDead, Request
from tests.serve.conftest import TinyBundle, drain, engine_of, greedy, tokens_of
from tests.serve.engine.asked import Steps, prompt, until


@pytest.mark.promise(number=9)
def test_an_abort_frees_blocks_and_slots_at_once(tiny: TinyBundle) -> None:
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


@pytest.mark.promise(number=9)
@pytest.mark.parametrize("how", ["close", "cancel", "drop"])
async def test_leaving_a_stream_frees_its_blocks(tiny: TinyBundle, how: str) -> None:
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
    await until(lambda: engine.stats().kv_blocks_used == 0)
    # One step may have been under way, and another begun before the loop saw the abort.
    assert len(steps.records) <= left + 2
    assert engine.stats().running == 0
    await engine.shutdown(0)


@pytest.mark.promise(number=10)
async def test_shutdown_finishes_what_runs_and_admits_nothing(tiny: TinyBundle) -> None:
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


@pytest.mark.promise(number=10)
async def test_shutdown_aborts_what_takes_too_long(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle)
    engine.start()
    stream = engine.generate(Request("x", prompt(0, 5), greedy(250)))
    await anext(stream)
    await engine.shutdown(0)
    assert [output async for output in stream][-1].finish_reason == "abort"
    assert engine.stats().kv_blocks_used == 0
