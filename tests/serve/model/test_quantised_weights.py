import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels.expert_linear import PackedWeight
from merge.bundle.quantised import (
    INT4,
    INT8,
    Scheme,
    is_embedding,
    packed_tensors,
    quantise,
    scheme_of,
    write_quantisation,
)
from serve.model import Decoder, ModelError, load_model
from serve.model.layers import Part
from tests.serve.conftest import random_model

NAME = "model.layers.0.self_attn.k_proj.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    random_model(num_hidden_layers=1).save_pretrained(tmp_path)
    return tmp_path


def compress(
    directory: Path, storage: str = "int4", other: Scheme | None = None, packs_embeddings: bool = False
) -> dict[str, Tensor]:
    """Store the directory's weights quantised; gives what they are multiplied out."""
    file, config = directory / "model.safetensors", directory / "config.json"
    stored: dict[str, Tensor] = {}
    dense: dict[str, Tensor] = {}
    for name, tensor in load_file(file).items():
        if tensor.dim() == 1:
            stored[name] = dense[name] = tensor
            continue
        scheme = scheme_of(storage, name)
        weight = quantise(tensor, other if other and scheme != INT8 else scheme)
        dense[name] = weight.dequantised()
        if is_embedding(name) and not packs_embeddings:
            stored[name] = weight.dequantised(torch.bfloat16)
        else:
            stored |= packed_tensors(name, weight)
    settings = write_quantisation(json.loads(config.read_text()), storage)
    if packs_embeddings:
        groups = settings["quantization_config"]["config_groups"]
        groups["group_1"] = {"weights": {**groups["group_0"]["weights"], "num_bits": 8, "strategy": "channel"}}
    if other is not None:
        weights = settings["quantization_config"]["config_groups"]["group_0"]["weights"]
        weights["strategy"], weights["group_size"] = ("group", other.group) if other.group else ("channel", None)
    config.write_text(json.dumps(settings))
    save_file(stored, file, metadata={"format": "pt"})
    return dense


def held(decoder: Decoder, part: Part) -> Tensor:
    weight = part.layer.weight
    if part.kind == "weight" and isinstance(weight, PackedWeight):
        return weight.dequantised(torch.float32)
    return part.tensor


def check(decoder: Decoder, dense: dict[str, Tensor]) -> None:
    for name, placement in decoder.placements.items():
        assert torch.equal(held(decoder, placement.part)[placement.rows], dense[name]), name


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_rounds_at_load_to_what_a_merge_would_store(directory: Path, storage: str) -> None:
    plain = load_model(directory)
    decoder = load_model(directory, quantisation=storage)
    packed = [p.part.layer.weight for p in decoder.placements.values() if len(p.shape) == 2]
    assert all(isinstance(weight, PackedWeight) for weight in packed)
    check(decoder, compress(directory, storage))
    assert decoder.unquantised_bytes() == plain.weight_bytes() == plain.unquantised_bytes()
    assert decoder.weight_bytes() < (0.45 if storage == "int8" else 0.4) * plain.weight_bytes()


@pytest.mark.parametrize("storage", ["int8", "int4"])
@pytest.mark.parametrize("compiled", [True, False])
def test_some_rows_at_a_time_and_without_kernels_it_rounds_the_same(
    directory: Path, storage: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 16 rows at a time, so that the parts of q, k and v, and of gate and up, begin within a block.
    monkeypatch.setattr("serve.model.quantised_weights.ELEMENTS", 1)
    if not compiled:
        monkeypatch.setattr("serve.model.quantised_weights.least_error", lambda *_: None)
    decoder = load_model(directory, quantisation=storage)
    check(decoder, compress(directory, storage))


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_serves_what_is_stored_quantised(directory: Path, storage: str) -> None:
    dense = compress(directory, storage)
    decoder = load_model(directory)
    check(decoder, dense)
    assert isinstance(decoder.layers[0].down.weight, PackedWeight)
    half = load_model(directory, torch.float16)  # no kernel computes on it: multiplied out
    assert isinstance(half.layers[0].down.weight, Tensor)
    name, placement = next(item for item in half.placements.items() if item[0] == NAME)
    assert torch.equal(placement.target, dense[name].half())


def test_serves_packed_embeddings(directory: Path) -> None:
    dense = compress(directory, packs_embeddings=True)
    decoder = load_model(directory)
    check(decoder, dense)
    assert isinstance(decoder.placements["model.embed_tokens.weight"].part.layer.weight, PackedWeight)


def test_floating_embeddings_stay_so_unless_config_says_that_they_are_rounded(directory: Path) -> None:
    compress(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    embedding = load_model(directory).placements["model.embed_tokens.weight"].part
    assert isinstance(embedding.layer.weight, PackedWeight)
    path.write_text(json.dumps({key: value for key, value in config.items() if not key.startswith("overtone")}))
    embedding = load_model(directory).placements["model.embed_tokens.weight"].part
    assert isinstance(embedding.layer.weight, Tensor)


@pytest.mark.parametrize(("other", "packs"), [(Scheme(4, 64), True), (Scheme(4), True), (Scheme(4, 16), False)])
def test_other_groups_are_served_or_multiplied_out(directory: Path, other: Scheme, packs: bool) -> None:
    dense = compress(directory, "int4", other)
    decoder = load_model(directory)
    check(decoder, dense)
    assert isinstance(decoder.layers[0].down.weight, PackedWeight) == packs


def test_damage_is_refused_with_the_tensors_name(directory: Path) -> None:
    compress(directory)
    file = directory / "model.safetensors"
    whole = load_file(file)
    for part, damaged in (
        ("_scale", whole[NAME + "_scale"] * float("nan")),
        ("_packed", whole[NAME + "_packed"][:, :-1].contiguous()),
        ("_shape", torch.tensor([16, 47])),
    ):
        save_file({**whole, NAME + part: damaged}, file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=NAME.replace(".", r"\.")):
            load_model(directory)
    save_file({name: t for name, t in whole.items() if name != NAME + "_scale"}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="k_proj.weight_scale is missing"):
        load_model(directory)
    save_file({**whole, "extra": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="'extra'"):
        load_model(directory)
    save_file({name: t for name, t in whole.items() if NAME not in name}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks the tensor"):
        load_model(directory)


def test_a_group_size_that_the_scales_do_not_have_is_refused(directory: Path) -> None:
    compress(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 64
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"proj\.weight_scale is .* \[\d+, 2\]; it must be floating \[\d+, 1\]"):
        load_model(directory)


@pytest.mark.parametrize("quantisation", [None, "int8"])
def test_values_that_are_not_finite_cannot_be_rounded(directory: Path, quantisation: str | None) -> None:
    if quantisation is None:
        compress(directory)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][1, 2] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.embed_tokens\.weight holds 1 NaN or infinite values"):
        load_model(directory, quantisation=quantisation)


def test_refuses_what_cannot_be_quantised(directory: Path) -> None:
    with pytest.raises(
        ModelError, match="int8 is for a CPU, in bfloat16 or float32, or a GPU with Triton .* runs in float16 on cpu"
    ):
        load_model(directory, torch.float16, quantisation="int8")
    compress(directory)
    with pytest.raises(ModelError, match="quantised already"):
        load_model(directory, quantisation="int8")
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="GPTQ, which is not supported: give the unquantised checkpoint"):
        load_model(directory)


def test_schemes_are_those_of_the_kernels() -> None:
    assert (INT8.group, INT4.group) == (None, 32)
