from typing import Any

import pytest

from merge.bundle.quantised import (
    INT4,
    INT8,
    QuantisationError,
    Scheme,
    has_rounded_embeddings,
    read_quantisation,
    write_quantisation,
)


def written(storage: str = "int4") -> dict[str, Any]:
    return write_quantisation({"model_type": "llama"}, storage)


def test_reads_what_it_writes() -> None:
    assert read_quantisation({"model_type": "llama"}) == frozenset()
    assert read_quantisation(written("int8")) == {INT8}
    assert read_quantisation(written("int4")) == {INT4}
    assert written()["model_type"] == "llama"
    assert has_rounded_embeddings(written())
    assert not has_rounded_embeddings({"model_type": "llama"})


def test_the_head_is_not_packed() -> None:
    settings = written()["quantization_config"]
    assert [group["targets"] for group in settings["config_groups"].values()] == [["Linear"]]
    assert settings["ignore"] == ["lm_head"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quant_method": "gptq", "bits": 4}, "of GPTQ, which is not supported"),
        ({"quant_method": "awq"}, "of AWQ"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "of bitsandbytes"),
        ({"load_in_8bit": True}, "of bitsandbytes"),
        ({"quant_method": "fp8"}, "of FP8"),
        ({}, "without a quant_method"),
        ({"quant_method": "torchao"}, "of 'torchao'"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "format 'float-quantized'"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "has no config_groups"),
        ("int8", "it must be an object"),
    ],
)
def test_refuses_other_formats_by_name(given: Any, said: str) -> None:
    with pytest.raises(QuantisationError, match=said) as error:
        read_quantisation({"quantization_config": given})
    if "config_groups" not in said and "object" not in said:
        assert "give the unquantised checkpoint" in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_bits", 3), ("symmetric", False), ("type", "float"), ("strategy", "block"), ("dynamic", True)],
)
def test_refuses_schemes_of_weights_by_name(key: str, value: object) -> None:
    config = written()
    config["quantization_config"]["config_groups"]["group_0"]["weights"][key] = value
    with pytest.raises(QuantisationError, match=f"group_0.weights.{key} is {value!r}"):
        read_quantisation(config)


def test_refuses_quantised_activations() -> None:
    config = written()
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8}
    with pytest.raises(QuantisationError, match="group_0 quantises input_activations"):
        read_quantisation(config)


def test_reads_other_groups() -> None:
    config = written()
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    weights["group_size"] = 128
    assert read_quantisation(config) == {Scheme(4, 128)}
    weights["strategy"], weights["group_size"] = "channel", None
    assert read_quantisation(config) == {Scheme(4)}
    weights["strategy"], weights["group_size"] = "group", 0
    with pytest.raises(QuantisationError, match="group_size is 0"):
        read_quantisation(config)
