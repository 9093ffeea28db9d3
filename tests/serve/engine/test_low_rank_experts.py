"""Experts with low-rank parts, served beside sparse ones and checked against dense weights in transformers."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from merge.bundle import Expert, write_expert
from serve.engine import Engine, Request, SilentObserver, StepRecord, build
from serve.engine.patch_costs import PatchCosts
from serve.experts import ExpertLoadError
from tests.serve.conftest import (
    TinyBundle,
    drain,
    engine_of,
    greedy,
    random_expert,
    random_low_rank,
    random_model,
    tokens_of,
    write_bundle,
)
from tests.serve.engine.replays import without_compiled_kernels

Mix = tuple[tuple[str, float], ...]

EMBEDDING = "model.embed_tokens.weight"
PROMPTS = [(11, 22, 33, 44, 55), (7, 3), (60, 61, 62, 63, 64, 65, 66), (90,), (5, 4, 3), (2, 96, 50, 8), (40, 41)]
MIXES: list[Mix] = [
    (),
    (("sparse", 1.0),),
    (("low", 1.0),),
    (("both", 1.0),),
    (("sparse", 0.5), ("both", 0.5)),
    (("low", -0.5), ("int8", 1.0)),
    (("int8", 1.0),),
]


def low_rank_expert(
    model: PreTrainedModel, digest: str, name: str, seed: int, dtype: torch.dtype = torch.bfloat16, tied: bool = False
) -> Expert:
    """Ranks of 1 to 5 that differ from weight to weight, some weights left out, embeddings and head included."""
    generator = torch.Generator().manual_seed(seed)
    weights = [(name, tensor.shape) for name, tensor in model.named_parameters() if tensor.dim() == 2]
    low_rank = {
        weight: random_low_rank(shape, 1 + (place * 3 + seed) % 5, generator, dtype, 0.7)
        for place, (weight, shape) in enumerate(weights)
        if (place + seed) % 4 or weight == EMBEDDING
    }
    return Expert(name, digest, 0.0, {}, {}, low_rank=low_rank)


def experts_of(model: PreTrainedModel, digest: str) -> list[Expert]:
    sparse = random_expert(model, digest, "sparse", 1)
    both = replace(
        random_expert(model, digest, "both", 2, entries=2), low_rank=low_rank_expert(model, digest, "", 3).low_rank
    )
    return [
        sparse,
        low_rank_expert(model, digest, "low", 4),
        both,
        low_rank_expert(model, digest, "int8", 5, torch.int8),
    ]


@pytest.fixture(scope="module", params=["untied", "tied, stacked biases"])
def mixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    settings: dict[str, Any] = {"num_hidden_layers": 2}
    family = "llama"
    if request.param != "untied":
        family, settings = "qwen2", settings | {"tie_word_embeddings": True}
    model = random_model(family, **settings)
    path = tmp_path_factory.mktemp("mixed") / "bundle"
    return write_bundle(path, model, lambda digest: experts_of(model, digest))


def check(engine: Engine, bundle: TinyBundle, tokens: int = 6) -> None:
    for number, (prompt, mix) in enumerate(zip(PROMPTS, MIXES, strict=True)):
        engine.add(Request(f"r{number}", prompt, greedy(tokens), mix))
    outputs = drain(engine)
    for number, (prompt, mix) in enumerate(zip(PROMPTS, MIXES, strict=True)):
        assert tokens_of(outputs[f"r{number}"]) == bundle.greedy(prompt, tokens, *mix), mix


def test_one_batch_of_all_forms_generates_what_dense_weights_do(mixed: TinyBundle) -> None:
    plain = mixed.greedy(PROMPTS[0], 6)
    for name in mixed.experts:
        assert mixed.greedy(PROMPTS[0], 6, (name, 1.0)) != plain, "an expert must matter"
    check(engine_of(mixed.bundle).engine, mixed)
    check(engine_of(mixed.bundle, max_expert_slots=2, max_num_seqs=2).engine, mixed)


def test_without_compiled_kernels_too(mixed: TinyBundle) -> None:
    with without_compiled_kernels():
        check(engine_of(mixed.bundle).engine, mixed)


def test_slots_take_another_form_than_before(mixed: TinyBundle) -> None:
    """One slot for all experts in turn: nothing of the one before stays."""
    engine = engine_of(mixed.bundle, max_expert_slots=1, enable_prefix_caching=False).engine
    for number, name in enumerate(("both", "low", "sparse", "int8", "sparse", "both")):
        engine.add(Request(f"r{number}", PROMPTS[0], greedy(4), ((name, 1.0),)))
        assert tokens_of(drain(engine)[f"r{number}"]) == mixed.greedy(PROMPTS[0], 4, (name, 1.0)), name


class Modes(SilentObserver):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_step(self, record: StepRecord) -> None:
        self.seen.append(record.mode)


def test_low_rank_experts_stay_fused_where_sparse_ones_are_patched(
    mixed: TinyBundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "measure_patch_costs", lambda *_: PatchCosts(1.0, (1,), (1.0,)))
    modes = Modes()
    with caplog.at_level(logging.INFO, "overtone"):
        engine = engine_of(mixed.bundle, modes, patching="auto", enable_prefix_caching=False).engine
        assert "patching, timed with expert sparse" in caplog.text
        for number, name in enumerate(("low", "sparse", "both", "low")):
            engine.add(Request(f"r{number}", PROMPTS[0], greedy(3), ((name, 1.0),)))
            assert tokens_of(drain(engine)[f"r{number}"]) == mixed.greedy(PROMPTS[0], 3, (name, 1.0))
    assert modes.seen == ["fused"] * 3 + ["patched"] * 3 + ["fused"] * 6
    assert caplog.text.count("has a low-rank part, and such experts stay fused") == 1


def test_a_bundle_of_low_rank_experts_alone_is_never_patched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "measure_patch_costs", lambda *_: pytest.fail("there is nothing to time"))
    model = random_model(num_hidden_layers=1)
    bundle = write_bundle(tmp_path / "b", model, lambda digest: [low_rank_expert(model, digest, "low", 4)])
    with caplog.at_level(logging.INFO, "overtone"):
        engine = engine_of(bundle.bundle, patching="auto").engine
    assert "patching is off: low-rank experts and weights of few bits are not patched" in caplog.text
    engine.add(Request("r", PROMPTS[0], greedy(3), (("low", 1.0),)))
    assert tokens_of(drain(engine)["r"]) == bundle.greedy(PROMPTS[0], 3, ("low", 1.0))


async def test_room_for_adapters_is_room_for_low_rank_experts(mixed: TinyBundle, tmp_path: Path) -> None:
    """As the error says that refuses a rank over that of the bundle's experts."""
    weight = "model.layers.0.mlp.up_proj.weight"
    part = random_low_rank((80, 48), 9, torch.Generator().manual_seed(0))
    made = Expert("new", mixed.bundle.manifest.backbone_digest, 0.0, {}, {}, low_rank={weight: part})
    write_expert(tmp_path / "new.safetensors", made)
    narrow = engine_of(mixed.bundle)
    with pytest.raises(ExpertLoadError, match=f"{weight} has rank 9, .* --enable-lora --max-lora-rank 9"):
        await narrow.load_expert("new", tmp_path / "new.safetensors")
    wide = engine_of(mixed.bundle, enable_lora=True, max_lora_rank=9)
    await wide.load_expert("new", tmp_path / "new.safetensors")
    wide.engine.add(Request("r", PROMPTS[0], greedy(4), (("new", 1.0),)))
    want = replace(mixed, experts={**mixed.experts, "new": made}).greedy(PROMPTS[0], 4, ("new", 1.0))
    assert tokens_of(drain(wide.engine)["r"]) == want
