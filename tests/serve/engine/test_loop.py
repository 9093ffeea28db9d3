import asyncio
import threading
from pathlib import Path

import pytest

from merge.bundle import write_expert
from serve.engine import AsyncEngine, Engine, EngineDead, InvalidRequest, Output, Request, UnknownExpert, loop
from serve.experts import ExpertLoadError, ExpertStore, GenerationMismatch
from tests.serve.conftest import TinyBundle, engine_of, greedy, random_expert, tokens_of

PROMPT = (11, 22, 33, 44, 55)


async def collect(engine: AsyncEngine, request: Request) -> list[int]:
    return tokens_of([output async for output in engine.generate(request)])


async def test_streams_run_together(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle)
    engine.start()
    names = ("a", "b", "c")
    found = await asyncio.gather(*(collect(engine, Request(name, PROMPT, greedy(6), ((name, 1.0),))) for name in names))
    assert found == [tiny.greedy(PROMPT, 6, (name, 1.0)) for name in names]
    engine.health()
    await engine.shutdown(1)


async def test_a_finished_stream_is_over(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle)
    engine.start()
    stream = engine.generate(Request("x", PROMPT, greedy(1), (("a", 1.0),)))
    assert [version.name for version, _ in stream.experts] == ["a"]
    await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    await engine.shutdown(1)


async def test_a_step_that_hangs_is_seen_from_outside(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, entered, go_on = engine_of(tiny.bundle), threading.Event(), threading.Event()
    step = Engine.step

    def hangs(self: Engine) -> list[Output]:
        entered.set()
        go_on.wait()
        return step(self)

    monkeypatch.setattr(Engine, "step", hangs)
    assert engine.step_seconds() == 0.0
    engine.start()
    await asyncio.to_thread(entered.wait)
    first = engine.step_seconds()
    await asyncio.sleep(0.001)
    assert engine.step_seconds() > first > 0
    go_on.set()
    await engine.shutdown(1)
    assert engine.step_seconds() == 0.0


async def test_an_engine_that_is_given_up_ends_its_streams_without_its_loop(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, entered, go_on = engine_of(tiny.bundle), threading.Event(), threading.Event()
    step = Engine.step

    def hangs(self: Engine) -> list[Output]:
        entered.set()
        assert go_on.wait(60)
        return step(self)

    engine.start()
    stream = engine.generate(Request("x", PROMPT, greedy(200)))
    await anext(stream)
    monkeypatch.setattr(Engine, "step", hangs)
    await asyncio.to_thread(entered.wait)
    unheard = engine.generate(Request("y", PROMPT, greedy(200)))
    monkeypatch.setattr(loop, "_LAST_STEP_SECONDS", 0.02)
    with pytest.raises(EngineDead, match="a step does not end"):
        await engine.shutdown(0)
    for given_up in (stream, unheard):
        with pytest.raises(EngineDead, match="the server is stopping, but a step is still running"):
            async for _ in given_up:
                pass
    go_on.set()
    monkeypatch.setattr(loop, "_LAST_STEP_SECONDS", 20)
    await engine.shutdown(0)  # what the step returned in the end is discarded
    with pytest.raises(EngineDead, match="a step is still running"):
        engine.health()


async def test_shutdown_does_not_wait_for_an_expert_that_is_read_for_ever(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, go_on = engine_of(tiny.bundle), threading.Event()
    monkeypatch.setattr(ExpertStore, "_read", lambda *_: go_on.wait(60))
    monkeypatch.setattr(loop, "_LAST_STEP_SECONDS", 0.02)
    engine.start()
    with pytest.raises(EngineDead, match="the loading of an expert does not end"):
        await engine.shutdown(0)
    go_on.set()


async def test_an_abort_from_elsewhere_ends_the_stream(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle)
    engine.start()
    stream = engine.generate(Request("x", PROMPT, greedy(200)))
    await anext(stream)
    engine.abort("x")
    engine.abort("never was")
    assert [output async for output in stream][-1].finish_reason == "abort"
    await engine.shutdown(1)


async def test_two_unfinished_requests_cannot_share_an_id(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle)
    engine.start()
    stream = engine.generate(Request("x", PROMPT, greedy(200)))
    with pytest.raises(InvalidRequest, match="'x' belongs to an unfinished request"):
        engine.generate(Request("x", PROMPT, greedy(1)))
    await stream.aclose()
    await engine.shutdown(1)


async def test_the_end_of_the_loop_is_seen_by_streams_callers_and_health(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny.bundle)
    engine.start()
    stream = engine.generate(Request("x", PROMPT, greedy(200)))
    await anext(stream)

    def fail(_: Engine) -> None:
        raise AssertionError("unforeseen")

    monkeypatch.setattr(Engine, "step", fail)
    with pytest.raises(EngineDead, match="the engine's loop ended: AssertionError: unforeseen"):
        while True:
            await anext(stream)
    with pytest.raises(EngineDead, match="unforeseen"):
        engine.health()
    with pytest.raises(EngineDead, match="unforeseen"):
        engine.generate(Request("y", PROMPT, greedy(1)))
    await engine.shutdown(1)


async def test_an_engine_that_was_not_started_says_so(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle)
    with pytest.raises(EngineDead, match="not running"):
        engine.generate(Request("x", PROMPT, greedy(1)))
    await engine.shutdown(0)


async def test_experts_come_and_go_while_it_runs(tiny: TinyBundle, tmp_path: Path) -> None:
    engine = engine_of(tiny.bundle)
    engine.start()
    stream = engine.generate(Request("long", PROMPT, greedy(100), (("a", 1.0),)))
    await anext(stream)
    file = tmp_path / "new.safetensors"
    write_expert(file, random_expert(tiny.model, tiny.bundle.manifest.backbone_digest, "new", seed=50))
    info = await engine.load_expert("new", file, expected_generation=0)
    assert info.version.name == "new"
    with pytest.raises(GenerationMismatch, match=f"is of generation {info.version.generation}, not 0"):
        await engine.load_expert("new", file, expected_generation=0)
    with pytest.raises(ExpertLoadError, match="no expert file"):
        await engine.load_expert("other", tmp_path / "missing.safetensors")
    assert len(await collect(engine, Request("x", PROMPT, greedy(3), (("new", 1.0),)))) == 3
    await engine.unload_expert("new", info.version.generation)
    await engine.unload_expert("a")
    with pytest.raises(UnknownExpert, match="no expert 'new'; there are: b, c, d"):
        engine.generate(Request("y", PROMPT, greedy(1), (("new", 1.0),)))
    with pytest.raises(UnknownExpert, match="'new'"):
        await engine.unload_expert("new")
    assert [info.version.name for info in engine.experts()] == ["b", "c", "d"]
    # The running request was admitted with `a` and keeps it.
    rest = [output async for output in stream]
    assert tokens_of(rest) == tiny.greedy(PROMPT, 100, ("a", 1.0))[1:]
    await engine.shutdown(1)
