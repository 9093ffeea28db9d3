"""Every family against transformers: logits, greedy tokens in mixed batches, experts on every weight."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from merge.bundle import SERVED_ARCHITECTURES, Expert
from serve.engine import Request
from serve.model import ModelError, load_model
from serve.model.families import FAMILIES
from tests.serve.conftest import (
    TinyBundle,
    drain,
    engine_of,
    greedy,
    random_delta,
    random_expert,
    random_model,
    tokens_of,
    write_bundle,
)
from tests.serve.model.families import CASES, LONGROPE
from tests.serve.model.test_decoder import expected, fill_slots, prompts, run

NOT_COMPILED = {
    "qwen3_moe": "the feed-forward is routed",
    "qwen3_moe, weights as they are": "the feed-forward is routed",
    "mixtral": "the feed-forward is routed",
}
"""Families whose layers take the single operations, and why."""
MIXES: list[tuple[tuple[str, float], ...]] = [(("a", 1.0),), (), (("b", 1.0),), (("a", 0.5), ("b", 0.5))]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(case: str, tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """The family's model with two experts that change every tensor of its checkpoint, the embedding included."""
    family, settings = CASES[case]
    model, folder = random_model(family, **settings), tmp_path_factory.mktemp("family")
    model.save_pretrained(folder / "model")
    tensors = load_file(folder / "model" / "model.safetensors")
    made = write_bundle(
        folder / "bundle",
        model,
        lambda digest: [_expert(tensors, digest, name, seed) for seed, name in enumerate("ab")],
    )
    # Read from a checkpoint with the experts added: transformers stacks a routed feed-forward's tensors when it loads.
    for mix in MIXES:
        made._dense[mix] = _with_experts(model, folder / "model", tensors, [(made.experts[n], gate) for n, gate in mix])
    return made


def _expert(tensors: Mapping[str, Tensor], digest: str, name: str, seed: int) -> Expert:
    generator = torch.Generator().manual_seed(seed)
    sparse = {
        name: random_delta(tensor.shape, 3, generator, 0.3)
        for name, tensor in tensors.items()
        if tensor.dim() == 2 and name != "lm_head.weight"
    }
    dense = {
        name: 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in tensors.items()
        if tensor.dim() == 1
    }
    return Expert(name, digest, 0.1, sparse, dense)


def _with_experts(
    model: PreTrainedModel, folder: Path, tensors: Mapping[str, Tensor], experts: Sequence[tuple[Expert, float]]
) -> PreTrainedModel:
    if not experts:
        return model
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    for expert, gate in experts:
        for name, residual in expert.sparse.items():
            changed[name] += gate * residual.dense(changed[name].shape[1])
        for name, delta in expert.dense.items():
            changed[name] += gate * delta
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    loaded: PreTrainedModel = type(model).from_pretrained(folder)
    return loaded.eval()


def test_the_registry_is_what_bundles_are_checked_against() -> None:
    assert list(FAMILIES) == list(SERVED_ARCHITECTURES)


def test_logits_are_those_of_transformers(case: str, bundle: TinyBundle) -> None:
    decoder = load_model(bundle.bundle.backbone_dir)
    assert decoder.not_compiled == NOT_COMPILED.get(case)
    assert decoder.config.capturable == (case not in NOT_COMPILED), "choices of branches are read back to the host"
    # Prompts take the single operations, the few tokens of the second step the compiled call.
    for sequences, splits in ((prompts(33, 6, 17), 1), (prompts(19, 5, 3), 3)):
        want = expected(bundle.model, sequences)
        got = run(decoder, sequences, splits)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        assert torch.equal(got.argmax(-1), want.argmax(-1))


def test_weights_of_8_bits_are_near(case: str, bundle: TinyBundle) -> None:
    decoder, sequences = load_model(bundle.bundle.backbone_dir, quantisation="int8"), prompts(19, 5, 3)
    routers = [layer.routed.router for layer in decoder.layers if layer.routed is not None]
    assert decoder.weight_bytes() < decoder.unquantised_bytes()
    assert all(isinstance(router.weight, Tensor) for router in routers), "another branch would be chosen"
    got, want = run(decoder, sequences, 3), expected(bundle.model, sequences)
    # A token whose branches are nearly as good may take another one.
    assert (got - want).norm() < (0.2 if routers else 0.1) * want.norm()


def test_mixed_batches_and_shared_prefixes_give_transformers_greedy_tokens(bundle: TinyBundle) -> None:
    engine = engine_of(bundle.bundle).engine
    shared = tuple(prompts(21)[0])
    requests = {f"{turn}{i}": ((*shared, turn, i), mix) for turn in range(2) for i, mix in enumerate(MIXES)}
    cached = {}
    for turn in "01":
        for name, (prompt, mix) in requests.items():
            if name[0] == turn:
                engine.add(Request(name, prompt, greedy(6), mix))
        outputs = drain(engine)
        for name, found in outputs.items():
            prompt, mix = requests[name]
            assert tokens_of(found) == bundle.greedy(prompt, 6, *mix), name
            cached[name] = found[0].cached_tokens
    assert all(cached[name] == (20 if name[0] == "1" else 0) for name in requests)


def test_longrope_chooses_its_factors_by_the_longest_context(tmp_path: Path) -> None:
    settings = {**CASES["phi3, longrope"][1], "max_position_embeddings": 256}
    model = random_model("phi3", **settings)
    model.save_pretrained(tmp_path)
    sequences = prompts(90)
    long, short = (load_model(tmp_path, max_positions=positions) for positions in (256, 64))
    torch.testing.assert_close(run(long, sequences, 3), expected(model, sequences), atol=2e-4, rtol=1e-3)
    few = prompts(40)
    torch.testing.assert_close(run(short, few, 3), expected(model, few), atol=1e-4, rtol=1e-4)


def test_experts_of_a_fused_tensor_and_of_the_parts_that_it_has_elsewhere(tmp_path: Path) -> None:
    model = random_model("phi3")
    model.save_pretrained(tmp_path)
    decoder = load_model(tmp_path)
    expert = random_expert(model, "digest", "x", 0)
    assert "model.layers.0.self_attn.qkv_proj.weight" in expert.sparse
    banks = fill_slots(decoder, [expert], tmp_path)
    of_llama: dict[str, Any] = {"model.layers.0.self_attn.q_proj.weight": random_delta((48, 48), 3, torch.Generator())}
    with pytest.raises(ModelError, match=r"'model.layers.0.self_attn.q_proj.weight', which this model does not have"):
        banks.pack(Expert("y", "digest", 0.1, of_llama, {}))


def test_longrope_needs_factors_for_every_rotated_pair(tmp_path: Path) -> None:
    model = random_model("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=64)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"]["short_factor"] = [1.0]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="short_factor has 1 numbers; it needs 3"):
        load_model(tmp_path)
