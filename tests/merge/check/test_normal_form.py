"""Configurations of real models in the spellings of transformers 4 and 5."""

from pathlib import Path
from typing import Any

import pytest

from merge.check.normal_form import normal_forms
from merge.check.settings import compare_settings
from merge.checkpoint import Checkpoint
from tests.merge.check.real_configs import CONFIGS, resaved
from tests.serve.model.real_configs import SERVED

ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}


def found(base: dict[str, Any], other: dict[str, Any]) -> dict[str, list[str]]:
    """The fields that differ, by severity."""
    findings = compare_settings(Checkpoint(Path("base"), base, {}), Checkpoint(Path("other"), other, {}), "models.x")
    fields = [(item.severity, item.message.split("config.json: ")[1].split(" is ")[0]) for item in findings]
    return {name: [field for severity, field in fields if severity == name] for name in ("error", "warning")}


@pytest.mark.parametrize("name", CONFIGS)
def test_both_spellings_mean_the_same(name: str, tmp_path: Path) -> None:
    four, five = CONFIGS[name], resaved(CONFIGS[name], tmp_path)
    assert found(four, five) == found(five, four) == {"error": [], "warning": []}


@pytest.mark.parametrize("name", SERVED)
def test_both_spellings_of_the_served_families_mean_the_same(name: str, tmp_path: Path) -> None:
    four, five = SERVED[name], resaved(SERVED[name], tmp_path)
    assert found(four, five) == found(five, four) == {"error": [], "warning": []}


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("SmolLM3-3B", {"no_rope_layers": [1] * 36}, "no_rope_layers"),
        ("granite-3.3-8b-instruct", {"residual_multiplier": 1.0}, "residual_multiplier"),
        ("granite-4.0-micro", {"shared_intermediate_size": 4096}, "shared_intermediate_size"),
        ("gemma-2-2b-it", {"attn_logit_softcapping": None}, "attn_logit_softcapping"),
        ("gemma-3-1b-it", {"rope_local_base_freq": 1e6}, "rope_parameters.sliding_attention.rope_theta"),
        ("Phi-4-mini-instruct", {"partial_rotary_factor": 1.0}, "partial_rotary_factor"),
        ("Qwen3-30B-A3B", {"norm_topk_prob": False}, "norm_topk_prob"),
    ],
)
def test_what_a_family_computes_with_is_compared(name: str, changes: dict[str, Any], field: str) -> None:
    assert field in found(SERVED[name], {**SERVED[name], **changes})["error"]


CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "theta": ({"rope_theta": 12345.0}, {"rope_parameters.rope_theta"}),
    "eps": ({"rms_norm_eps": 3e-6}, {"rms_norm_eps"}),
    "head_dim": ({"head_dim": 32}, {"head_dim"}),
    "kv heads": ({"num_key_value_heads": 1}, {"num_key_value_heads"}),
    "tied": ({"tie_word_embeddings": None}, {"tie_word_embeddings"}),
    "hidden_act": ({"hidden_act": "gelu"}, {"hidden_act"}),
    "layers": ({"num_hidden_layers": 3}, {"num_hidden_layers"}),
    "linear rope": (
        {"rope_scaling": {"type": "linear", "factor": 3.0}},
        {"rope_parameters.factor", "rope_parameters.rope_type"},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_single_change_of_meaning_is_found(name: str, change: str, tmp_path: Path) -> None:
    four = CONFIGS[name]
    changes, expected = CHANGES[change]
    if change == "tied":
        changes = {"tie_word_embeddings": not four["tie_word_embeddings"]}
    changed = {**four, **changes}
    wrong = set(found(resaved(four, tmp_path), changed)["error"])
    if change == "linear rope" and four.get("rope_scaling"):
        # What else the former kind was set by is gone as well, and the kind may have been linear before.
        assert "rope_parameters.factor" in wrong
    else:
        assert wrong - {"layer_types"} == expected


@pytest.mark.parametrize(
    ("name", "scaling", "field"),
    [
        ("Llama-3.1-8B", {"factor": 16.0}, "factor"),
        ("Llama-3.1-8B", {"high_freq_factor": 8.0}, "high_freq_factor"),
        ("Llama-3.1-8B", {"original_max_position_embeddings": 4096}, "original_max_position_embeddings"),
        ("Qwen2.5-7B-Instruct with the card's YaRN", {"factor": 2.0}, "factor"),
        ("Qwen2.5-7B-Instruct with the card's YaRN", {"beta_fast": 16}, "beta_fast"),
        ("deepseek-coder-6.7b", {"factor": 2.0}, "factor"),
    ],
)
def test_a_change_of_how_rope_is_stretched_is_found(
    name: str, scaling: dict[str, Any], field: str, tmp_path: Path
) -> None:
    four = CONFIGS[name]
    changed = {**four, "rope_scaling": {**four["rope_scaling"], **scaling}}
    assert found(resaved(four, tmp_path), changed)["error"] == [f"rope_parameters.{field}"]
    assert found(four, {**four, "rope_scaling": None})["error"] != []


@pytest.mark.parametrize("name", ["Qwen2.5-7B", "Qwen3-0.6B"])
def test_a_window_that_is_switched_on_is_found(name: str, tmp_path: Path) -> None:
    on = {**CONFIGS[name], "use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 20}
    assert "layer_types" in found(resaved(CONFIGS[name], tmp_path / "off"), on)["error"]
    assert found(on, resaved(on, tmp_path / "on")) == {"error": [], "warning": []}
    assert "sliding_window" in found(on, {**on, "sliding_window": 2048})["error"]


def test_mistrals_window(tmp_path: Path) -> None:
    first = CONFIGS["Mistral-7B-v0.1"]
    assert found(resaved(first, tmp_path), {**first, "sliding_window": None})["error"] == ["sliding_window"]
    without = {key: value for key, value in first.items() if key != "sliding_window"}
    assert found(first, without) == {"error": [], "warning": []}, "4096 is the class's default"


def test_settings_without_effect_may_differ() -> None:
    yarn = CONFIGS["Qwen2.5-7B-Instruct with the card's YaRN"]
    written = {**yarn["rope_scaling"], "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None}
    changes = {"rope_scaling": written, "max_window_layers": 70, "pad_token_id": 5, "attention_dropout": 0.1}
    assert found(yarn, {**yarn, **changes}) == {"error": [], "warning": []}


@pytest.mark.parametrize("kind", ["mistral", "unheard_of"])
def test_rope_by_kind_of_layer_is_compared_by_kind(kind: str) -> None:
    base = {**CONFIGS["Mistral-7B-v0.1"], "model_type": kind}
    del base["rope_theta"]
    kinds = {"full_attention": {"rope_type": "default", "rope_theta": 5e5}, "sliding_attention": ROPE}
    other = {**kinds, "sliding_attention": {**ROPE, "factor": 4.0}}
    assert found({**base, "rope_parameters": kinds}, {**base, "rope_parameters": dict(kinds)})["error"] == []
    assert found({**base, "rope_parameters": kinds}, {**base, "rope_parameters": other})["error"] == [
        "rope_parameters.sliding_attention.factor"
    ]


def test_what_no_class_reads_is_compared_as_it_stands() -> None:
    four = {**CONFIGS["Llama-3.1-8B"], "model_type": "unheard_of"}
    five = {key: value for key, value in four.items() if not key.startswith("rope_")}
    five["rope_parameters"] = {**four["rope_scaling"], "rope_theta": 500000.0}
    assert found(four, five) == {"error": [], "warning": []}
    assert found(four, {**five, "hidden_size": 1})["error"] == ["hidden_size"]
    refused = {**CONFIGS["Llama-3.1-8B"], "rms_norm_eps": None}
    assert found(CONFIGS["Llama-3.1-8B"], refused)["error"] == ["rms_norm_eps"]


def test_the_documents_are_left_as_they_were() -> None:
    config = {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}
    normal_forms(config)
    assert config == {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}
