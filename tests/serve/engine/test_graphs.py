import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from serve.engine import Engine, EngineConfig, Request, build
from serve.engine.graphs import GraphLimits, bucket_of, captures_steps
from serve.engine.patch_costs import PatchCosts
from serve.engine.scheduler import Chunk
from serve.engine.sequence import Sequence
from serve.engine.static_step import Bucket
from serve.experts import ExpertVersion
from tests.serve.conftest import (
    TinyBundle,
    drain,
    engine_of,
    greedy,
    random_expert,
    random_model,
    tokens_of,
    write_bundle,
)
from tests.serve.engine.replays import Again, capturing_engine, compared_engine, without_compiled_kernels

Experts = tuple[tuple[str, float], ...]
A, B = (("a", 1.0),), (("b", 1.0),)
MIXES: list[Experts] = [(), A, B, (("c", 1.0),), (("d", -0.5),), (("a", 0.25), ("b", 0.75)), (("c", 0.5), ("a", 1.0))]


@pytest.fixture(autouse=True)
def _torch_path() -> Iterator[None]:
    with without_compiled_kernels():
        yield


def prompt(number: int, length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(number)
    return tuple(torch.randint(2, 97, (length,), generator=generator).tolist())


def make_resident(engine: Engine) -> None:
    """Bring all experts into slots, so that no sequence waits for its own while others decode."""
    for name in "abcd":
        engine.add(Request(name, prompt(99, 2), greedy(1), ((name, 1.0),)))
    drain(engine)


FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 7},
    "qwen2": {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1},
    "qwen3": {"tie_word_embeddings": True},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}},
    "gemma2": {"sliding_window": 11, "attn_logit_softcapping": 2.0},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_steps_are_eager_ones(family: str, tmp_path: Path) -> None:
    """Sequences come and go, contexts grow through three buckets, and all mixes of experts meet."""
    model = random_model(family, **FAMILIES[family])
    tiny = write_bundle(
        tmp_path / "bundle",
        model,
        lambda digest: [random_expert(model, digest, name, seed) for seed, name in enumerate("abcd")],
    )
    engine, compared, again = compared_engine(tiny.bundle, enable_prefix_caching=False)
    make_resident(engine)
    requests = [
        Request(f"r{i}", prompt(i, 3 + i % 9), greedy(6 + 5 * i % 29), MIXES[i % len(MIXES)]) for i in range(12)
    ]
    outputs = {}
    for first in range(0, len(requests), 5):
        for request in requests[first : first + 5]:
            engine.add(request)
        for _ in range(4):
            for output in engine.step():
                outputs.setdefault(output.request_id, []).append(output)
    for name, more in drain(engine).items():
        outputs.setdefault(name, []).extend(more)
    for request in requests:
        count = request.params.max_tokens
        assert tokens_of(outputs[request.request_id]) == tiny.greedy(request.prompt, count, *request.experts)
    seen = Counter(compared.replayed)
    assert again.captured == len(seen)
    assert sum(seen.values()) > 2 * len(seen)
    assert {bucket.context for bucket in seen} == {16, 32, 64}
    assert {bucket.experts for bucket in seen} >= {1, 2}
    assert len({bucket.sequences for bucket in seen}) > 2


@pytest.mark.parametrize(("sequences", "rows"), [(1, 1), (3, 4), (5, 8), (17, 32)])
def test_any_number_of_sequences(tiny: TinyBundle, sequences: int, rows: int) -> None:
    engine, compared, _ = compared_engine(tiny.bundle, max_num_batched_tokens=64)
    make_resident(engine)
    for number in range(sequences):
        engine.add(Request(f"r{number}", prompt(number, 3), greedy(6), MIXES[number % 5]))
    outputs = drain(engine)
    for number in range(sequences):
        want = tiny.greedy(prompt(number, 3), 6, *MIXES[number % 5])
        assert tokens_of(outputs[f"r{number}"]) == want
    assert {bucket.sequences for bucket in compared.replayed} == {rows}


def test_one_graph_serves_whatever_experts_come(tiny: TinyBundle) -> None:
    engine, compared, again = compared_engine(tiny.bundle, max_expert_slots=4, block_size=5)
    make_resident(engine)
    waves: list[list[Experts]] = [
        [A, A, A],
        [B, (), ()],
        [A, B, (("c", 1.0),)],
        [(("d", 0.5),), (("d", -2.0),), ()],
        [(("c", 1.0),), (("c", 1.0),), (("d", 1.0),)],
    ]
    for wave in waves:
        for number, mix in enumerate(wave):
            engine.add(Request(f"r{number}", prompt(number, 4), greedy(8), mix))
        outputs = drain(engine)
        for number, mix in enumerate(wave):
            assert tokens_of(outputs[f"r{number}"]) == tiny.greedy(prompt(number, 4), 8, *mix)
    assert set(compared.replayed) == {Bucket(4, 16, 1)}
    assert again.captured == 1


def test_an_expert_in_the_weights_is_the_plain_graph(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "measure_patch_costs", lambda *_: PatchCosts(8.0, (1,), (1.0,)))
    engine, compared, again = compared_engine(tiny.bundle, patching="auto", enable_prefix_caching=False)
    for mix in ((), A, B, (), A):
        engine.add(Request("r", prompt(1, 3), greedy(12), mix))
        assert tokens_of(drain(engine)["r"]) == tiny.greedy(prompt(1, 3), 12, *mix)
    assert set(compared.replayed) == {Bucket(1, 16, 0), Bucket(1, 16, 1)}
    assert again.captured == 2


def test_rows_that_are_not_wanted(tiny: TinyBundle) -> None:
    """Prompts of one token more draw nothing, or ask for the prompt's log-probabilities."""
    engine, compared, _ = compared_engine(tiny.bundle, max_num_batched_tokens=24, enable_prefix_caching=False)
    make_resident(engine)
    for number in range(4):
        engine.add(Request(f"r{number}", prompt(number, 3), greedy(9), MIXES[number]))
    for _ in range(3):
        engine.step()
    engine.add(Request("scored", prompt(9, 1), greedy(0, prompt_logprobs=1)))
    engine.add(Request("one", prompt(8, 1), greedy(3)))
    outputs = drain(engine)
    assert outputs["scored"][-1].finish_reason == "length"
    assert tokens_of(outputs["one"]) == tiny.greedy(prompt(8, 1), 3)
    assert Bucket(8, 16, 1) in compared.replayed


def test_a_prompt_that_gets_one_token_a_step(tiny: TinyBundle) -> None:
    """It has more blocks than the captured step has room for, and draws nothing."""
    engine, compared, _ = compared_engine(tiny.bundle, max_num_seqs=4, max_num_batched_tokens=4)
    make_resident(engine)
    for number in range(3):
        engine.add(Request(f"r{number}", prompt(number, 2), greedy(40), MIXES[number]))
    for _ in range(5):
        engine.step()
    engine.add(Request("long", prompt(9, 30), greedy(2), A))
    assert tokens_of(drain(engine)["long"]) == tiny.greedy(prompt(9, 30), 2, *A)
    assert compared.replayed.count(Bucket(4, 16, 1)) > 5


def failing_capture(work: Callable[[], None]) -> Again:
    work()
    raise RuntimeError("operation not permitted when stream is capturing")


class FailingReplay(Again):
    def __call__(self, work: Callable[[], None]) -> "FailingReplay":  # type: ignore[override]
        self.captured += 1
        return self

    def replay(self) -> None:
        self.replayed += 1
        if self.replayed == 2:
            raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("capture", [failing_capture, FailingReplay()])
def test_what_cannot_be_captured_stays_eager(
    tiny: TinyBundle, capture: Callable[[Callable[[], None]], Again], caplog: pytest.LogCaptureFixture
) -> None:
    engine, graphs = capturing_engine(tiny.bundle, capture)
    if isinstance(capture, FailingReplay):
        graphs._logits.zero_()
    engine.add(Request("before", prompt(1, 3), greedy(3), A))
    with caplog.at_level(logging.WARNING):
        drain(engine)
        for number, mix in enumerate(MIXES):
            engine.add(Request(f"r{number}", prompt(number, 3), greedy(20), mix))
        outputs = drain(engine)
    assert not any(output[-1].error for output in outputs.values())
    if capture is failing_capture:
        for number, mix in enumerate(MIXES):
            assert tokens_of(outputs[f"r{number}"]) == tiny.greedy(prompt(number, 3), 20, *mix)
    (record,) = [record for record in caplog.records if "captured" in record.message]
    assert "no longer captured" in record.message
    assert "RuntimeError: operation not permitted when stream is capturing" in record.message
    assert not graphs._steps


def chunks(*contexts: int, experts: int = 0, count: int = 1) -> list[Chunk]:
    """Chunks whose sequences will have these numbers of tokens in the cache."""
    made = []
    for number, context in enumerate(contexts):
        versions = tuple((ExpertVersion(f"e{i}", Path(f"e{i}"), f"digest{i}", i), 1.0) for i in range(experts))
        sequence = Sequence(Request(f"r{number}", (1,) * context, greedy(1)), versions, 0)
        sequence.computed = context - count
        made.append(Chunk(sequence, count, True, False))
    return made


@pytest.mark.parametrize(
    ("step", "bucket"),
    [
        (chunks(1), Bucket(1, 256, 0)),
        (chunks(256, 3), Bucket(2, 256, 0)),
        (chunks(257, 3, 9), Bucket(4, 512, 0)),
        (chunks(5000), Bucket(1, 8192, 0)),
        (chunks(*[7] * 33, experts=1), Bucket(64, 256, 1)),
        (chunks(7, experts=3), Bucket(1, 256, 4)),
        (chunks(7, experts=5), None),
        (chunks(*[7] * 65), Bucket(128, 256, 0)),
        (chunks(*[7] * 257), None),
        (chunks(8, 9, count=2), None),
        # 16 * 4,096 tokens are read both for 9 * 4,000 and for 16 * 3,000.
        (chunks(*[4000] * 9), Bucket(16, 4096, 0)),
        (chunks(*[3000] * 8, *[40] * 8), None),
    ],
)
def test_the_bucket_of_a_step(step: list[Chunk], bucket: Bucket | None) -> None:
    assert bucket_of(step, False, GraphLimits()) == bucket


def test_a_patched_steps_bucket_is_the_plain_one() -> None:
    assert bucket_of(chunks(7, experts=1), True, GraphLimits()) == Bucket(1, 256, 0)


def test_captures_are_bounded_and_spare_the_first_steps_of_a_bucket(tiny: TinyBundle) -> None:
    again = Again()
    limits = GraphLimits(least_context=4, eager_steps=3, most_graphs=2)
    engine, graphs = capturing_engine(tiny.bundle, again, limits)
    engine.add(Request("r", prompt(1, 3), greedy(60)))
    drain(engine)
    # Of 3 tokens there is one step, eager; contexts of 5 to 8 have four, the last of which is captured.
    assert list(graphs._steps) == [Bucket(1, 8, 0), Bucket(1, 16, 0)]
    assert (again.captured, again.replayed) == (2, 1 + 5)


def test_common_steps_are_captured_before_they_come(tiny: TinyBundle) -> None:
    engine, compared, again = compared_engine(tiny.bundle, max_num_seqs=4, enable_prefix_caching=False)
    make_resident(engine)
    before = again.captured
    compared._graphs.capture_all(1)
    sizes = {bucket.sequences for bucket in compared._graphs._steps}
    assert sizes == {1, 2, 4, 8, 16, 32, 64}
    assert {bucket.experts for bucket in compared._graphs._steps} == {0, 1}
    assert again.captured == before + 14
    for number in range(4):
        engine.add(Request(f"r{number}", prompt(number, 3), greedy(6), MIXES[number]))
    outputs = drain(engine)
    for number in range(4):
        assert tokens_of(outputs[f"r{number}"]) == tiny.greedy(prompt(number, 3), 6, *MIXES[number])
    assert again.captured == before + 14


def test_what_decodes_beside_a_prompt_is_replayed(tiny: TinyBundle) -> None:
    engine, compared, _ = compared_engine(tiny.bundle, max_num_seqs=8, enable_prefix_caching=False)
    make_resident(engine)
    for number in range(2):
        engine.add(Request(f"r{number}", prompt(number, 3), greedy(24), MIXES[number + 1]))
    for _ in range(6):
        engine.step()
    eager, replayed = compared.eager, len(compared.replayed)
    engine.add(Request("long", prompt(7, 40), greedy(3), B))
    engine.add(Request("scored", prompt(8, 20), greedy(2, prompt_logprobs=0), A))
    early = [output for _ in range(2) for output in engine.step()]
    assert (compared.eager, len(compared.replayed)) == (eager, replayed + 2)
    outputs = drain(engine)
    for output in reversed(early):
        outputs[output.request_id].insert(0, output)
    assert tokens_of(outputs["long"]) == tiny.greedy(prompt(7, 40), 3, *B)
    assert tokens_of(outputs["scored"]) == tiny.greedy(prompt(8, 20), 2, *A)


def test_without_a_gpu_nothing_is_captured_and_no_block_is_spared(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle).engine
    assert engine._runner._graphs is None
    assert engine._runner._cache.with_spare is None


@pytest.mark.parametrize(
    ("device", "available", "eager", "captures"),
    [
        ("cuda", True, False, True),
        ("cuda", True, True, False),
        ("cuda", False, False, False),
        ("cpu", True, False, False),
    ],
)
def test_where_steps_are_captured(
    device: str, available: bool, eager: bool, captures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert captures_steps(EngineConfig(enforce_eager=eager), torch.device(device)) is captures


def test_the_spare_block_is_nobodys_and_within_the_budget(tiny: TinyBundle) -> None:
    block_bytes = 4 * 3 * 2 * 2 * 8 * 4
    engine, graphs = capturing_engine(tiny.bundle, Again(), kv_cache_bytes=100 * block_bytes + 1)
    assert engine.stats().kv_blocks_total == 99
    assert [len(tensor) for tensor in graphs._cache.keys] == [100] * 3
    assert graphs._cache.keys[0].data_ptr() == engine._runner._cache.keys[0].data_ptr()
