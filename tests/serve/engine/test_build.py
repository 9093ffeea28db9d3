import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from merge.bundle import Bundle, expert_header, open_bundle
from serve.api.generate.catalogue import Catalogue
from serve.engine import EngineError, InvalidRequest, Request, build
from serve.engine import memory as memory_module
from serve.engine.memory import free_bytes
from serve.model import Decoder, load_model
from tests.serve.conftest import TinyBundle, drain, engine_of, greedy, random_model, tokens_of, write_bundle
from tests.serve.model.families import CASES

BLOCK_BYTES = 4 * 3 * 2 * 2 * 8 * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "tpu-ish"}, "device 'tpu-ish' is not one of auto, cpu, cuda, cuda:N"),
        ({"dtype": "int4"}, "dtype is 'int4'; it must be one of auto, float32, bfloat16, float16"),
        ({"max_model_len": 257}, "max_model_len is 257; it must be at most 256"),
        ({"kv_cache_bytes": 63 * BLOCK_BYTES}, f"needs {64 * BLOCK_BYTES} bytes of KV cache, of {63 * BLOCK_BYTES}"),
    ],
)
def test_what_does_not_fit_is_named(tiny: TinyBundle, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        engine_of(tiny.bundle, **settings)


def test_blocks_fill_the_budget_up_to_what_all_sequences_can_need(tiny: TinyBundle) -> None:
    assert engine_of(tiny.bundle, kv_cache_bytes=100 * BLOCK_BYTES + 1).stats().kv_blocks_total == 100
    assert engine_of(tiny.bundle, max_num_seqs=2, kv_cache_bytes=1000 * BLOCK_BYTES).stats().kv_blocks_total == 128


def test_by_default_blocks_take_a_share_of_free_memory(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "free_bytes", lambda _: 1000 * BLOCK_BYTES)
    assert engine_of(tiny.bundle, kv_cache_bytes=None).stats().kv_blocks_total == 300


def test_on_a_cpu_the_default_is_capped_by_the_weights(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "free_bytes", lambda _: 1 << 40)
    monkeypatch.setattr(memory_module, "LEAST_CAP", 70 * BLOCK_BYTES)
    monkeypatch.setattr(Decoder, "weight_bytes", lambda _: 50 * BLOCK_BYTES)
    assert engine_of(tiny.bundle, kv_cache_bytes=None).stats().kv_blocks_total == 100
    monkeypatch.setattr(Decoder, "weight_bytes", lambda _: 20 * BLOCK_BYTES)
    assert engine_of(tiny.bundle, kv_cache_bytes=None).stats().kv_blocks_total == 70
    monkeypatch.setattr(memory_module, "LEAST_CAP", BLOCK_BYTES)  # one sequence always fits
    assert engine_of(tiny.bundle, kv_cache_bytes=None).stats().kv_blocks_total == 64


def test_weight_bytes_are_those_of_the_checkpoint(tiny: TinyBundle) -> None:
    decoder = load_model(tiny.bundle.backbone_dir)
    assert decoder.weight_bytes() == sum(tensor.nbytes for tensor in tiny.model.parameters())


def test_free_memory_is_within_what_is_installed() -> None:
    assert 0 < free_bytes(torch.device("cpu")) < 1 << 50


def test_experts_on_the_host_take_a_share_of_free_memory(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Request("x", (5, 6, 7), greedy(1), (("a", 1.0),))
    size = 3 * (80 + 48 + 160 + 48) * 3 * 4 + 7 * 48 * 4
    for free, on_host in ((4 * size, ("a",)), (3 * size, ()), (0, ())):
        monkeypatch.setattr(build, "available_host_bytes", lambda free=free: free)
        engine = engine_of(tiny.bundle).engine
        engine.add(run)
        drain(engine)
        assert engine.stats().experts_on_host == on_host
    monkeypatch.setattr(build, "available_host_bytes", lambda: 0)
    engine = engine_of(tiny.bundle, max_expert_host_bytes=size).engine
    engine.add(run)
    drain(engine)
    assert engine.stats().experts_on_host == ("a",)


def test_experts_that_cannot_be_read_are_named_at_start(
    tiny: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny.bundle.path, tmp_path / "bundle")
    bundle = Bundle(tmp_path / "bundle", tiny.bundle.manifest)
    bundle.expert_path("b").write_bytes(b"damaged")
    said: list[str] = []
    monkeypatch.setattr(build._log, "error", lambda text, *values: said.append(text % values))
    engine_of(bundle)
    (line,) = said
    assert line.startswith("1 of 4 experts cannot be served")
    assert str(bundle.expert_path("b")) in line


def test_slots_default_to_the_number_of_experts(tiny: TinyBundle) -> None:
    assert engine_of(tiny.bundle).stats().expert_slots == 4
    assert engine_of(tiny.bundle, max_expert_slots=2).stats().expert_slots == 2


def test_a_bundle_without_experts_serves_its_backbone(tmp_path: Path) -> None:
    tiny = write_bundle(tmp_path / "bundle", random_model("qwen3", tie_word_embeddings=True))
    engine = engine_of(tiny.bundle)
    engine.engine.add(Request("x", (3, 4, 5), greedy(5)))
    assert tokens_of(drain(engine.engine)["x"]) == tiny.greedy((3, 4, 5), 5)
    assert engine.stats().expert_slots == 0


def test_a_dtype_can_be_chosen(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle, dtype="bfloat16")
    engine.engine.add(Request("x", (3, 4, 5), greedy(5), (("a", 1.0),)))
    assert drain(engine.engine)["x"][-1].finish_reason == "length"
    assert engine.stats().kv_cache_bytes == engine.stats().kv_blocks_total * BLOCK_BYTES // 2


def test_the_header_of_each_expert_is_read_once(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    read_layout = expert_header.read_layout

    def recorded(path: Path) -> expert_header.ExpertLayout:
        read.append(path)
        return read_layout(path)

    monkeypatch.setattr("merge.bundle.reader.read_layout", recorded)
    bundle = open_bundle(tiny.bundle.path)
    Catalogue.from_bundle(bundle, 64)
    engine_of(bundle)
    assert read == [bundle.expert_path(name) for name in "abcd"]


def test_a_dynamic_rope_reaches_as_far_as_its_factor(tmp_path: Path) -> None:
    model = random_model(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    bundle = write_bundle(tmp_path / "bundle", model).bundle
    with pytest.raises(EngineError, match="max_model_len is 513; it must be at most 512"):
        engine_of(bundle, max_model_len=513)
    prompt = tuple(token % 90 + 2 for token in range(300))
    engine = engine_of(bundle, max_model_len=512).engine
    engine.add(Request("long", prompt, greedy(2)))
    assert len(tokens_of(drain(engine)["long"])) == 2
    own = engine_of(bundle).engine
    with pytest.raises(InvalidRequest, match="256"):
        own.add(Request("long", prompt, greedy(2)))


def test_the_log_says_which_factors_a_longrope_uses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {**CASES["phi3, longrope"][1], "max_position_embeddings": 256}
    bundle = write_bundle(tmp_path / "bundle", random_model("phi3", **settings)).bundle
    with caplog.at_level("INFO", logger="overtone"):
        engine_of(bundle, max_model_len=64)
        assert "factors of long contexts" not in caplog.text
        engine_of(bundle)
    assert "up to 256 tokens are longer than the 64" in caplog.text
    assert "--max-model-len 64 takes those of short ones" in caplog.text
