"""What is read of widely used models' config.json, beside what transformers makes of it."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

from serve.model import Decoder, ModelConfig, ModelError, read_config
from tests.merge.check.real_configs import resaved
from tests.serve.model.real_configs import FULL, REFUSED, SERVED, SLIDING


def of_transformers(config: dict[str, Any]) -> PretrainedConfig:
    # A copy, because the classes write to what they are given.
    return CONFIG_MAPPING[config["model_type"]].from_dict(deepcopy(config))


def parsed(config: dict[str, Any], folder: Path) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(config))
    return read_config(folder)


@pytest.mark.parametrize("name", SERVED)
def test_windows_and_ropes_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    ours, theirs = parsed(SERVED[name], tmp_path), of_transformers(SERVED[name])
    window = theirs.sliding_window if hasattr(theirs, "sliding_window") else None
    kinds = getattr(theirs, "layer_types", None) or [SLIDING if window else FULL] * theirs.num_hidden_layers
    assert ours.windows == tuple(window if kind == SLIDING else None for kind in kinds)
    rotated = getattr(theirs, "no_rope_layers", None) or [1] * len(kinds)
    for layer, kind, turns in zip(ours.layers, kinds, rotated, strict=True):
        settings = theirs.rope_parameters.get(kind, theirs.rope_parameters)
        if not turns:
            assert layer.rope.kind == "none"
            continue
        assert layer.rope.kind == settings["rope_type"]
        assert layer.rope.theta == settings["rope_theta"]
        assert layer.rope.part == settings.get("partial_rotary_factor", 1.0)
        assert layer.rope.factor == pytest.approx(settings.get("factor", layer.rope.factor))
        layer.rope.check(ours.head_dim)


@pytest.mark.parametrize("name", SERVED)
def test_both_spellings_are_read_alike(name: str, tmp_path: Path) -> None:
    config = SERVED[name]
    four, five = parsed(config, tmp_path), parsed(resaved(config, tmp_path), tmp_path)
    # Version 5 adds its classes' end tokens, which the data leaves out.
    assert replace(four, eos_token_ids=()) == replace(five, eos_token_ids=())


@pytest.mark.parametrize("name", SERVED)
def test_tensors_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Of the first layers, without memory for any value."""
    few = {**SERVED[name], "num_hidden_layers": 2}
    few |= {key: few[key][:2] for key in ("layer_types", "no_rope_layers") if key in few}
    ours = Decoder(parsed(few, tmp_path), 8, torch.bfloat16, torch.device("meta"))
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(of_transformers(few))
    found = {name: placement.shape for name, placement in ours.placements.items()}
    want = {name: tuple(tensor.shape) for name, tensor in theirs.named_parameters()}

    def unrouted(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Without what transformers stacks and renames when it reads a checkpoint."""
        return {name: shape for name, shape in shapes.items() if ".experts." not in name and ".gate." not in name}

    assert unrouted(found) == unrouted(want)
    assert ours.weight_bytes() == 2 * sum(tensor.numel() for tensor in theirs.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["mamba"] * 4 + ["attention"] * 36}, "layers of the kind 'mamba'"),
        ({"num_local_experts": 64}, "routed feed-forward"),
    ],
)
def test_a_granite_4_that_is_not_dense_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"GraniteMoeHybridForCausalLM with .*{message}"):
        parsed({**SERVED["granite-4.0-micro"], **changes}, tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_other_architectures_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"holds {REFUSED[name]['architectures'][0]}; this decoder serves"):
        parsed(REFUSED[name], tmp_path)
