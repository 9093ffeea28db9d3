"""Steps that are launched before the host has read the tokens of the step before, without a GPU."""

from collections.abc import Iterator

import pytest
import torch

from kernels.sampling import UNDECIDED, SamplingRow, sample, sample_at_once
from serve.engine import Engine, Request, SamplingParams
from serve.engine.draws import Draws
from serve.engine.graphs import DecodeGraphs, GraphLimits
from serve.engine.request import Output
from serve.engine.runner import Runner
from serve.engine.sequence import Sequence
from tests.serve.conftest import TinyBundle, drain, greedy, tokens_of
from tests.serve.engine.replays import Again, capturing_engine, without_compiled_kernels
from tests.serve.engine.test_graphs import MIXES, make_resident, prompt

LIMITS = GraphLimits(least_context=64, eager_steps=0)
"""One bucket of contexts for all, captured when it first comes."""


@pytest.fixture(autouse=True)
def _torch_path() -> Iterator[None]:
    with without_compiled_kernels():
        yield


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is launched behind a step, and what is read, in order."""
    found: list[str] = []
    launch, read = DecodeGraphs.follow, Draws.read

    def launching(self: DecodeGraphs, *arguments: object) -> object:
        logits = launch(self, *arguments)  # type: ignore[arg-type]
        found.append("waited" if logits is None else "launched")
        return logits

    def reading(self: Draws, sequences: list[Sequence]) -> object:
        found.append("read")
        return read(self, sequences)

    monkeypatch.setattr(DecodeGraphs, "follow", launching)
    monkeypatch.setattr(Draws, "read", reading)
    return found


def settings(number: int) -> SamplingParams:
    """Greedy and drawn, with filters that look at some, at all and at more candidates; some end early."""
    kinds: list[dict[str, object]] = [
        {"temperature": 0.0},
        {"temperature": 1.3},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 2.0, "top_p": 0.9},
        {"temperature": 1.0, "min_p": 0.01, "stop_token_ids": tuple(range(0, 97, 6))},
    ]
    return SamplingParams(max_tokens=5 + number * 7 % 13, seed=number, ignore_eos=True, **kinds[number % 5])  # type: ignore[arg-type]


def run(engine: Engine, requests: list[Request], aborted: str | None = None) -> dict[str, list[Output]]:
    """All outputs; requests arrive two at a time, while others decode."""
    outputs: dict[str, list[Output]] = {}
    for first in range(0, len(requests), 2):
        for request in requests[first : first + 2]:
            engine.add(request)
        for _ in range(3):
            for output in engine.step():
                outputs.setdefault(output.request_id, []).append(output)
        if aborted is not None and first == 6:
            engine.abort(aborted)
    for name, more in drain(engine).items():
        outputs.setdefault(name, []).extend(more)
    return outputs


@pytest.mark.parametrize(("blocks", "narrow"), [(None, 256), (12, 3)])
def test_what_is_launched_ahead_changes_no_token(
    tiny: TinyBundle, blocks: int | None, narrow: int, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With prompts in chunks beside, requests that end early or are aborted, and too few blocks for all."""
    monkeypatch.setattr("kernels.sampling.reference.NARROW", narrow)
    options = {"max_num_batched_tokens": 24, "block_size": 4, "max_num_seqs": 6}
    found = []
    for follows in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not follows:
                patch.setattr(Runner, "follows", False)
            engine, _ = capturing_engine(tiny.bundle, Again(), LIMITS, **options)
            held = 0 if blocks is None else engine._pool.free - blocks
            engine._pool.allocate(held)
            make_resident(engine)
            requests = [
                Request(f"r{n}", prompt(n, 3 + n * 5 % 17), settings(n), MIXES[n % len(MIXES)]) for n in range(14)
            ]
            outputs = run(engine, requests, aborted="r5")
            found.append({name: tokens_of(these) for name, these in outputs.items() if name != "r5"})
            assert engine._pool.used == held
    assert found[0] == found[1]
    assert order.count("launched") > 20


def test_a_step_is_launched_before_the_tokens_of_the_one_before_are_read(tiny: TinyBundle, order: list[str]) -> None:
    engine, graphs = capturing_engine(tiny.bundle, Again(), LIMITS)
    graphs.capture_all(1)
    make_resident(engine)
    for number in range(3):
        engine.add(Request(f"r{number}", prompt(number, 4), greedy(10), MIXES[number]))
    order.clear()
    outputs = drain(engine)
    for number in range(3):
        assert tokens_of(outputs[f"r{number}"]) == tiny.greedy(prompt(number, 4), 10, *MIXES[number])
    # Each of ten tokens but the last is read after the step that computes it was launched.
    assert order == ["launched", "read"] * 9 + ["read"]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=6, temperature=0.0, logprobs=1),
        SamplingParams(max_tokens=6, temperature=0.0, presence_penalty=0.5),
        SamplingParams(max_tokens=6, temperature=0.0, logit_bias={3: 1.0}),
        SamplingParams(max_tokens=6, temperature=0.0, min_tokens=6, ignore_eos=False),
    ],
)
def test_what_the_host_has_to_decide_waits_for_it(tiny: TinyBundle, params: SamplingParams, order: list[str]) -> None:
    engine, _ = capturing_engine(tiny.bundle, Again(), LIMITS)
    engine.add(Request("free", prompt(0, 4), greedy(6)))
    engine.add(Request("decided", prompt(1, 4), params))
    outputs = drain(engine)
    assert len(tokens_of(outputs["decided"])) == 6
    assert "launched" not in order


def test_a_device_that_is_lost_behind_a_step_is_noticed_where_its_tokens_are_read(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    engine, _ = capturing_engine(tiny.bundle, Again(), LIMITS)
    engine.add(Request("r", prompt(0, 4), greedy(8)))
    for _ in range(3):
        engine.step()
    monkeypatch.setattr(Draws, "read", fails)
    with pytest.raises(torch.AcceleratorError):
        engine.step()


ROWS = [
    SamplingRow(temperature=0.0),
    SamplingRow(temperature=0.7, uniform=0.3),
    SamplingRow(temperature=0.7, uniform=0.9, top_k=40),
    SamplingRow(temperature=0.5, uniform=0.6, top_p=0.8),
    SamplingRow(temperature=5.0, uniform=0.6, top_p=0.99),
    SamplingRow(temperature=1.0, uniform=0.2, presence=0.5, seen=torch.tensor([3, 5]), times=torch.ones(2)),
]


def test_draws_without_waiting_are_the_same() -> None:
    logits = torch.randn(len(ROWS), 5000, generator=torch.Generator().manual_seed(0)) * 4
    tokens, want = sample_at_once(logits, ROWS), sample(logits, range(len(ROWS)), ROWS)
    assert (tokens == UNDECIDED).tolist() == [False, False, False, False, True, False]
    assert torch.equal(tokens[:4], want[:4])
    assert tokens[5] == want[5]


def test_draws_without_waiting_ask_a_device_for_nothing() -> None:
    """A tensor without values refuses to tell any."""
    logits = torch.empty(len(ROWS), 5000, device="meta", dtype=torch.bfloat16)
    assert sample_at_once(logits, ROWS).shape == (len(ROWS),)
    with pytest.raises((RuntimeError, NotImplementedError)):
        sample(logits, range(len(ROWS)), ROWS)
