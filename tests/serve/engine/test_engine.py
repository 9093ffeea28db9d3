from typing import Any

import pytest
import torch

from serve.engine import (
    Engine,
    InvalidRequest,
    Request,
    RequestRecord,
    SamplingParams,
    SilentObserver,
    StepRecord,
    TokenOutput,
)
from serve.engine import engine as engine_module
from serve.engine.runner import Runner
from serve.engine.sampler import token_outputs
from serve.engine.scheduler import PROMPT_LOGPROBS_CHUNK
from tests.serve.conftest import TinyBundle, drain, engine_of, greedy, run_alone, tokens_of

PROMPT = (11, 22, 33, 44, 55)


@pytest.fixture
def engine(tiny: TinyBundle) -> Engine:
    return engine_of(tiny.bundle).engine


class Records(SilentObserver):
    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.requests: list[RequestRecord] = []

    def on_step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def on_finish(self, record: RequestRecord) -> None:
        self.requests.append(record)


def test_a_stop_token_ends_the_text_and_is_its_last(tiny: TinyBundle, engine: Engine) -> None:
    expected = tiny.greedy(PROMPT, 8)
    stop = next(token for token in expected[1:] if token != expected[0])
    engine.add(Request("x", PROMPT, greedy(8, stop_token_ids=(stop,))))
    outputs = drain(engine)["x"]
    assert tokens_of(outputs) == expected[: expected.index(stop) + 1]
    assert outputs[-1].finish_reason == "stop"


def test_the_models_end_token_ends_the_text_unless_ignored(tiny: TinyBundle, engine: Engine) -> None:
    always_end = {"max_tokens": 3, "temperature": 0.0, "logit_bias": {1: 1000.0}}
    engine.add(Request("ends", PROMPT, SamplingParams(**always_end)))
    engine.add(Request("goes on", PROMPT, SamplingParams(**always_end, ignore_eos=True)))
    engine.add(Request("held back", PROMPT, SamplingParams(**always_end, min_tokens=2)))
    outputs = drain(engine)
    assert tokens_of(outputs["ends"]) == [1]
    assert outputs["ends"][-1].finish_reason == "stop"
    assert tokens_of(outputs["goes on"]) == [1, 1, 1]
    assert outputs["goes on"][-1].finish_reason == "length"
    assert tokens_of(outputs["held back"])[2] == 1
    assert 1 not in tokens_of(outputs["held back"])[:2]


def test_a_request_may_have_end_tokens_of_its_own(tiny: TinyBundle, engine: Engine) -> None:
    def always(token: int, **more: Any) -> SamplingParams:
        given = {"max_tokens": 3, "temperature": 0.0, "logit_bias": {token: 1000.0}, "end_token_ids": (2, 3), **more}
        return SamplingParams(**given)

    engine.add(Request("ends", PROMPT, always(3)))
    engine.add(Request("the model's", PROMPT, always(1)))
    engine.add(Request("goes on", PROMPT, always(3, ignore_eos=True)))
    engine.add(Request("held back", PROMPT, always(3, min_tokens=2)))
    engine.add(Request("none", PROMPT, always(1, end_token_ids=())))
    outputs = drain(engine)
    assert (tokens_of(outputs["ends"]), outputs["ends"][-1].finish_reason) == ([3], "stop")
    assert (tokens_of(outputs["the model's"]), outputs["the model's"][-1].finish_reason) == ([1, 1, 1], "length")
    assert tokens_of(outputs["goes on"]) == [3, 3, 3]
    assert tokens_of(outputs["held back"])[2] == 3
    assert not {2, 3} & set(tokens_of(outputs["held back"])[:2])
    assert tokens_of(outputs["none"]) == [1, 1, 1]
    with pytest.raises(InvalidRequest, match="end_token_ids has a token outside the vocabulary"):
        engine.add(Request("beyond", PROMPT, always(1, end_token_ids=(10**6,))))


def test_a_sequence_ends_at_the_longest_length(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle, max_model_len=10).engine
    engine.add(Request("x", PROMPT, greedy(100)))
    outputs = drain(engine)["x"]
    assert tokens_of(outputs) == tiny.greedy(PROMPT, 5)
    assert outputs[-1].finish_reason == "length"


def test_logprobs_are_those_of_transformers(tiny: TinyBundle, engine: Engine) -> None:
    experts = (("b", 1.0),)
    engine.add(Request("x", PROMPT, greedy(3, logprobs=2), experts))
    outputs = drain(engine)["x"]
    sequence = [*PROMPT, *tokens_of(outputs)]
    with torch.inference_mode():
        expected = tiny.dense(*experts)(torch.tensor([sequence])).logits[0].log_softmax(-1)
    for number, output in enumerate(output for each in outputs for output in each.tokens):
        row = expected[len(PROMPT) - 1 + number]
        assert output.logprob == pytest.approx(float(row[output.token]), abs=1e-4)
        assert output.top_logprobs is not None
        assert [token for token, _ in output.top_logprobs] == row.topk(2).indices.tolist()


@pytest.mark.parametrize("max_tokens", [0, 2])
@pytest.mark.parametrize("length", [1, 40, PROMPT_LOGPROBS_CHUNK + 40])
def test_prompt_logprobs_are_those_of_transformers(tiny: TinyBundle, max_tokens: int, length: int) -> None:
    engine = engine_of(tiny.bundle, max_num_batched_tokens=PROMPT_LOGPROBS_CHUNK + 30).engine
    prompt = tuple(torch.randint(97, (length,), generator=torch.Generator().manual_seed(length)).tolist())
    engine.add(Request("warm", prompt, greedy(1), (("a", 1.0),)))
    engine.add(Request("beside", PROMPT, greedy(6, prompt_logprobs=0)))
    drain(engine)
    engine.add(Request("x", prompt, greedy(max_tokens, prompt_logprobs=1), (("a", 1.0),)))
    outputs = drain(engine)["x"]
    assert len(tokens_of(outputs)) == max_tokens
    assert outputs[-1].finish_reason == "length"
    assert all(output.prompt_logprobs is None for output in outputs[1:])
    found = outputs[0].prompt_logprobs
    assert found is not None
    assert len(found) == length
    assert found[0] is None
    with torch.inference_mode():
        expected = tiny.dense(("a", 1.0))(torch.tensor([prompt])).logits[0].log_softmax(-1)
    for position in range(1, length):
        token = found[position]
        assert token is not None
        assert token.token == prompt[position]
        assert token.logprob == pytest.approx(float(expected[position - 1, prompt[position]]), abs=1e-3)
        assert token.top_logprobs is not None
        assert token.top_logprobs[0][0] == int(expected[position - 1].argmax())


def test_scored_prompt_tokens_are_bounded_over_all_sequences(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def recorded(logits: torch.Tensor, tokens: list[int], asked: list[int | None]) -> list[TokenOutput]:
        rows.append(len(tokens))
        return token_outputs(logits, tokens, asked)

    monkeypatch.setattr(engine_module, "token_outputs", recorded)
    engine = engine_of(tiny.bundle, max_num_batched_tokens=2048).engine
    for number in range(6):
        engine.add(Request(f"x{number}", tuple(range(3, 63)), greedy(3, prompt_logprobs=2)))
    engine.add(Request("plain", (3, 4, 5), greedy(3)))
    outputs = drain(engine)
    assert sum(rows) == 6 * 59
    assert max(rows) <= PROMPT_LOGPROBS_CHUNK
    for number in range(6):
        scored = outputs[f"x{number}"][0].prompt_logprobs
        assert scored is not None
        assert len(scored) == 60
        assert len(tokens_of(outputs[f"x{number}"])) == 3
    assert len(tokens_of(outputs["plain"])) == 3


def test_prompt_logprobs_survive_preemption(tiny: TinyBundle, engine: Engine) -> None:
    prompt = tuple(range(2, 60))
    engine.add(Request("x", prompt, greedy(1, prompt_logprobs=0)))
    engine.step()
    engine._scheduler._preempt(engine._scheduler.running[0])
    found = drain(engine)["x"][0].prompt_logprobs
    assert found is not None
    assert [token.token for token in found[1:] if token is not None] == list(prompt[1:])


def test_a_failing_step_fails_its_requests_and_not_the_engine(
    tiny: TinyBundle, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    engine.add(Request("x", PROMPT, greedy(3)))
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", fail)
        (output,) = engine.step()
    assert (output.finish_reason, output.error) == ("error", "the step failed: RuntimeError: out of luck")
    assert engine.stats().kv_blocks_used == 0
    assert run_alone(engine, Request("y", PROMPT, greedy(3)))["y"] == tiny.greedy(PROMPT, 3)


def test_blocks_of_a_failed_step_are_not_found_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Runner.run

    def fail_after(*arguments: object) -> None:
        run(*arguments)  # type: ignore[arg-type]
        raise RuntimeError("late")

    engine.add(Request("x", tuple(range(2, 30)), greedy(3)))
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", fail_after)
        engine.step()
    engine.add(Request("y", tuple(range(2, 30)), greedy(1)))
    assert drain(engine)["y"][-1].cached_tokens == 0


def test_an_id_is_free_again_once_its_request_ended(engine: Engine) -> None:
    engine.add(Request("x", PROMPT, greedy(1)))
    with pytest.raises(InvalidRequest, match="request_id 'x' belongs to an unfinished request"):
        engine.add(Request("x", PROMPT, greedy(1)))
    drain(engine)
    engine.add(Request("x", PROMPT, greedy(1)))
    assert "x" in drain(engine)


def test_unseeded_requests_draw_differently(engine: Engine) -> None:
    flat = SamplingParams(max_tokens=8, temperature=50.0, ignore_eos=True)
    engine.add(Request("x", PROMPT, flat))
    engine.add(Request("y", PROMPT, flat))
    outputs = drain(engine)
    assert tokens_of(outputs["x"]) != tokens_of(outputs["y"])


def test_records_tell_what_happened(tiny: TinyBundle) -> None:
    seen = Records()
    engine = engine_of(tiny.bundle, seen).engine
    engine.add(Request("x", tuple(range(2, 42)), greedy(3), (("a", 0.5), ("b", 0.5))))
    engine.add(Request("y", PROMPT, greedy(1)))
    drain(engine)
    assert sum(step.prefill_tokens for step in seen.steps) == 45
    assert sum(step.decode_tokens for step in seen.steps) == 2
    assert {step.mode for step in seen.steps} >= {"fused"}
    assert max(step.distinct_experts for step in seen.steps) == 2
    assert seen.steps[-1].running == seen.steps[-1].waiting == seen.steps[-1].kv_blocks_used == 0
    assert all(step.kv_blocks_total == 512 and step.seconds > 0 for step in seen.steps)
    record = next(record for record in seen.requests if record.request_id == "x")
    assert record.experts == ("a", "b")
    assert (record.prompt_tokens, record.generated_tokens, record.finish_reason) == (40, 3, "length")
    assert record.scheduled is not None
    assert record.first_token is not None
    assert record.arrival <= record.scheduled <= record.first_token <= record.finished


@pytest.mark.promise(number=14)
def test_a_batch_without_experts_is_plain(tiny: TinyBundle) -> None:
    seen = Records()
    engine = engine_of(tiny.bundle, seen).engine
    run_alone(engine, Request("x", PROMPT, greedy(3)))
    assert {step.mode for step in seen.steps} == {"plain"}


def test_stats_count_bytes_exactly(tiny: TinyBundle, engine: Engine) -> None:
    run_alone(engine, Request("x", PROMPT, greedy(3), (("a", 1.0),)))
    stats = engine.stats()
    assert stats.kv_cache_bytes == stats.kv_blocks_total * 4 * 3 * 2 * 2 * 8 * 4
    assert stats.experts_resident == ("a",)
    assert stats.expert_slots == 4
    rows = 3 * (80 + 48 + 160 + 48)  # qkv, output, gate and up, down: multiples of 16, so that no slot is padded
    assert stats.expert_device_bytes == 4 * (rows * 3 * 4 + 7 * 48 * 4)
    assert (stats.experts_on_host, stats.expert_host_bytes) == (("a",), rows * 3 * 4 + 7 * 48 * 4)
    assert (stats.contents_resident, stats.contents_on_host) == (1, 1)
