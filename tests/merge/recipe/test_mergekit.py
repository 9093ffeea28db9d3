"""Recipes written for mergekit."""

from pathlib import Path

import pytest
import torch

from merge.methods import TaskVectors
from merge.recipe import Recipe, RecipeError, load_recipe
from merge.recipe.parameters import layer_count, values_for

TIES = """
models:
  - model: base
    # no parameters: the base itself
  - model: tunes/a
    parameters:
      density: 0.5
      weight:
        - filter: mlp
          value: 0.5
        - filter: norm
          value: 0
        - value: 0.3
  - model: tunes/b
    parameters: {density: 0.5, weight: [{filter: mlp, value: 2}]}
merge_method: task_arithmetic
base_model: base
parameters:
  normalize: false
  int8_mask: true
  weight: 7
  lambda: [{filter: attn, value: 10}, {filter: "*", value: 1}]
dtype: float32
out_dtype: bfloat16
tokenizer: {source: base}
"""


def load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "mergekit.yml"
    path.write_text(text)
    return load_recipe(path)


def test_what_means_the_same_is_read(tmp_path: Path) -> None:
    recipe = load(tmp_path, TIES.replace("density: 0.5, ", "").replace("      density: 0.5\n", ""))
    assert recipe.name == "mergekit"
    assert [entry.name for entry in recipe.models] == ["a", "b"]
    assert recipe.out_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        ("layers.0.mlp.weight", 0.5 * 1 + 2 * 10),
        ("layers.0.norm.weight", 0 * 1 + 7 * 10),
        ("layers.0.attn.weight", 10 * (0.3 * 1 + 7 * 10)),
        ("embed", 0.3 * 1 + 7 * 10),
    ],
)
def test_a_tensor_gets_the_value_of_the_first_filter_that_its_name_contains(
    tmp_path: Path, tensor: str, expected: float
) -> None:
    """If no entry of the model's list fits, the common value applies, and then the default."""
    recipe = load(tmp_path, TIES.replace("density: 0.5, ", "").replace("      density: 0.5\n", ""))
    vectors = TaskVectors(["a", "b"], lambda task: torch.tensor(1.0 if task == "a" else 10.0))
    assert float(recipe.method()(tensor, torch.tensor(0.0), vectors)) == pytest.approx(expected)


def test_the_base_among_the_models_of_an_average_counts(tmp_path: Path) -> None:
    text = "base_model: base\nmerge_method: linear\nmodels: [{model: base}, {model: a}]\n"
    assert [entry.name for entry in load(tmp_path, text).models] == ["base", "a"]


def test_a_plus_names_an_adapter_unless_a_directory_has_that_name(tmp_path: Path) -> None:
    text = "base_model: base\nmodels: [{model: full+loras/x}, {model: a+b, name: odd}, {model: c, adapter: d}]\n"
    (tmp_path / "a+b").mkdir()
    found = load(tmp_path, text).models
    assert [(entry.name, entry.model.name, entry.adapter and entry.adapter.name) for entry in found] == [
        ("x", "full", "x"),
        ("odd", "a+b", None),
        ("d", "c", "d"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("slices: []", "slices: not supported: merging slices of layers"),
        ("modules: {}", "modules: not supported"),
        ("chat_template: auto", "chat_template: not supported"),
        ("tokenizer_source: union", "tokenizer_source: not supported: building a tokenizer"),
        ("parameters: {lambda: [0.1, x]}", "parameters.lambda: a list over layers holds numbers only"),
        ("parameters: {lambda: [{filter: mlp}]}", "is not an entry of a list by tensor"),
        ("parameters: {lambda: [{filter: mlp, value: x}]}", "parameters.lambda: 'x' must be a number or auto"),
        ("parameters: {weight: [{filtr: mlp, value: 1}]}", "is not an entry of a list by tensor"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, f"base_model: base\nmerge_method: task_arithmetic\nmodels: [{{model: a}}]\n{line}\n")
    assert message in str(caught.value)


def test_everything_unsupported_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, "slices: []\nmerge_method: slerp\ndtype: float16\nbase_model: b\n")
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["slices", "models", "merge_method"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_of_16_bits_is_what_is_stored(tmp_path: Path, dtype: str) -> None:
    text = f"base_model: base\nmerge_method: ties\nmodels: [{{model: a}}]\ndtype: {dtype}\n"
    recipe = load(tmp_path, text)
    assert (recipe.dtype, recipe.out_dtype) == ("float32", dtype)
    assert recipe.remarks == (
        f"dtype: {dtype} is too coarse for task vectors: arithmetic is in float32, and {dtype} is stored",
        "density is not given: the default of ties is 0.2, and mergekit's is 1",
    )
    assert load(tmp_path, f"{text}out_dtype: float32\n").out_dtype == "float32"
    assert load(tmp_path, text.replace(f"dtype: {dtype}", "")).remarks == ()


GRADIENTS = """
models:
  - model: psmathur/orca_mini_v3_13b
    parameters: {density: [1, 0.7, 0.1], weight: 1.0}
  - model: garage-bAInd/Platypus2-13B
    parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}
merge_method: ties
base_model: TheBloke/Llama-2-13B-fp16
parameters: {normalize: true, int8_mask: true}
dtype: float16
"""

SLICES = """
slices:
  - sources:
      - {model: psmathur/orca_mini_v3_13b, layer_range: [0, 40]}
merge_method: slerp
base_model: psmathur/orca_mini_v3_13b
parameters: {t: [{filter: self_attn, value: [0, 0.5, 1]}, {value: 0.5}]}
dtype: float16
"""

MIXTURE = """
base_model: NousResearch/Hermes-2-Pro-Mistral-7B
gate_mode: hidden
dtype: bfloat16
experts:
  - {source_model: NousResearch/Hermes-2-Pro-Mistral-7B, positive_prompts: [a]}
"""


def test_a_gradient_goes_over_the_layers(tmp_path: Path) -> None:
    text = GRADIENTS.replace("density: [1, 0.7, 0.1]", "density: [1.0, 0.8, 0.2]")
    recipe = load(tmp_path, text).of_layers(5)
    assert recipe.remarks == (
        "dtype: float16 is too coarse for task vectors: arithmetic is in float32, and float16 is stored",
    )
    first, second = (entry.parameters for entry in recipe.models)
    layer = "model.layers.{}.mlp.up_proj.weight"
    densities = [values_for(first, layer.format(number), 5)["density"] for number in range(5)]
    weights = [values_for(second, layer.format(number), 5)["weight"] for number in range(5)]
    assert densities == pytest.approx([1, 0.9, 0.8, 0.5, 0.2])
    assert weights == pytest.approx([0, 0.225, 0.5, 0.775, 1])
    assert values_for(second, "model.embed_tokens.weight", 5)["weight"] == 0
    assert values_for(second, "lm_head.weight", 5)["weight"] == 1
    mixed = {"weight": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.3}]}
    assert values_for(mixed, layer.format(2), 5) == {"weight": 0.5}
    assert values_for(mixed, "model.layers.2.self_attn.q_proj.weight", 5) == {"weight": 0.3}


def test_a_gradient_is_merged_layer_by_layer(tmp_path: Path) -> None:
    text = "base_model: b\nmerge_method: task_arithmetic\nmodels: [{model: a, parameters: {weight: [0, 1]}}]\n"
    method = load(tmp_path, text).of_layers(3).method()
    vectors = TaskVectors(["a"], lambda _: torch.tensor(2.0))
    found = [float(method(f"model.layers.{i}.x.weight", torch.tensor(0.0), vectors)) for i in range(3)]
    assert found == [0.0, 1.0, 2.0]


def test_layers_are_counted() -> None:
    assert layer_count({"model.layers.11.mlp.weight", "model.layers.2.mlp.weight", "model.norm.weight"}) == 12
    assert layer_count({"bert.encoder.layer.3.output.weight", "x"}) == 4
    assert layer_count({"model.norm.weight"}) == 0


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("parameters: {int8_mask: true}", 2),
        ("parameters: {int8_mask: true, density: 0.5}", 1),
        ("parameters: {int8_mask: true, density: 0.5, normalize: true}", 0),
        ("tokenizer_source: base", 2),
        ("parameters: {lambda: 1.0}", 0),
    ],
)
def test_defaults_that_mergekit_does_not_share_are_told(tmp_path: Path, line: str, told: int) -> None:
    text = f"base_model: b\nmerge_method: dare_ties\nmodels: [{{model: a, parameters: {{weight: 1}}}}]\n{line}\n"
    remarks = load(tmp_path, text).remarks
    assert len(remarks) == told
    assert all("mergekit's is" in remark for remark in remarks)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SLICES, ["slices", "models", "merge_method"]),
        (MIXTURE, ["unknown key 'gate_mode'; there are ", "experts", "models"]),
    ],
    ids=["slices", "mixture of experts"],
)
def test_one_fault_does_not_hide_the_next(tmp_path: Path, text: str, expected: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    found = sorted(caught.value.faults)
    assert len(found) == len(expected)
    assert all(any(fault.startswith(start) for fault in found) for start in expected), found


def test_a_fault_in_a_model_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, "base_model: b\nmodels: [{model: a, paramters: {}}]\nmerge_method: ties\nparameters: {x: 1}\n")
    assert len(caught.value.faults) == 2
    assert "models.0: unknown key 'paramters'; did you mean 'parameters'?" in caught.value.faults[0]
    assert "parameters: unknown key 'x'" in caught.value.faults[1]


@pytest.mark.parametrize(
    ("line", "advice"),
    [("tokenizer_source: union", "write tokenizer_source: base"), ("tokenizer: x", "write tokenizer: {source: base}")],
)
def test_the_advice_names_the_key_that_was_written(tmp_path: Path, line: str, advice: str) -> None:
    with pytest.raises(RecipeError, match=advice):
        load(tmp_path, f"base_model: base\nmodels: [{{model: a}}]\n{line}\n")


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("512MiB", 512 * 2**20), ("1000", 1000)])
def test_shard_sizes_are_bytes(tmp_path: Path, text: str, size: int) -> None:
    assert load(tmp_path, f"base_model: b\nmodels: [{{model: a}}]\nout_shard_size: {text}\n").out_shard_size == size


def test_a_shard_size_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="out_shard_size"):
        load(tmp_path, "base_model: b\nmodels: [{model: a}]\nout_shard_size: 5B5\n")
