"""GGUF files of families with oddities: what llama.cpp stores otherwise, on tiny models."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from merge.checkpoint import CheckpointError, open_checkpoint
from merge.gguf import as_directory
from serve.model import load_model
from tests.merge.gguf.files import ARCHITECTURES, rounded, write_gguf
from tests.merge.gguf.test_convert import converted, logits, model

SHORT, LONG = [1.0, 1.5, 2.0, 3.0], [2.0, 4.0, 8.0, 16.0]
ATTENTION = math.sqrt(1 + math.log(64 / 4) / math.log(4))
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma2": (
        "gemma2",
        {
            "sliding_window": 3,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 6.0,
            "query_pre_attn_scalar": 16,
            "tie_word_embeddings": True,
        },
        {
            "attention.sliding_window": 3,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 6.0,
            "attention.key_length": 16,
            "attention.value_length": 16,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "sliding_window": 3,
            "num_hidden_layers": 7,
            "query_pre_attn_scalar": 16,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            "tie_word_embeddings": True,
        },
        {
            "attention.sliding_window": 3,
            "attention.key_length": 16,
            "attention.value_length": 16,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
    "phi3": ("phi3", {"pad_token_id": 0, "eos_token_id": 2}, {"attention.sliding_window": 0}),
    "phi3, window and longrope": (
        "phi3",
        {
            "pad_token_id": 0,
            "eos_token_id": 2,
            "sliding_window": 4,
            "original_max_position_embeddings": 4,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "short_factor": SHORT,
                "long_factor": LONG,
                "original_max_position_embeddings": 4,
            },
        },
        {
            "attention.sliding_window": 4,
            "rope.dimension_count": 8,
            "rope.scaling.original_context_length": 4,
            "rope.scaling.attn_factor": ATTENTION,
        },
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32},
    ),
    "mixtral": (
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2},
        {"expert_count": 4, "expert_used_count": 2},
    ),
}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERTONE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def written(
    path: Path, case: str, kind: GGMLQuantizationType = GGMLQuantizationType.F32
) -> tuple[Path, PreTrainedModel]:
    """A case's file, and its model."""
    family, settings, keys = CASES[case]
    made = model(family, **settings)
    prefix = ARCHITECTURES.get(family, family)
    tensors = {}
    if "longrope" in case:
        tensors = {"rope_factors_short.weight": torch.tensor(SHORT), "rope_factors_long.weight": torch.tensor(LONG)}
    more = {f"{prefix}.{key}": value for key, value in keys.items()}
    return write_gguf(path, made, kind, more, tensors), made


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_models(tmp_path: Path, case: str) -> None:
    path, made = written(tmp_path / "tiny.gguf", case)
    torch.testing.assert_close(logits(converted(path)), logits(made), rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_server_reads_every_setting_and_tensor(tmp_path: Path, case: str) -> None:
    path, made = written(tmp_path / "tiny.gguf", case)
    directory = as_directory(path)
    decoder = load_model(directory)
    assert set(decoder.placements) == set(open_checkpoint(directory).tensors)
    given = made.config
    for number, layer in enumerate(decoder.config.layers):
        kind = (getattr(given, "layer_types", None) or [None] * (number + 1))[number]
        windowed = given.sliding_window if kind in {None, "sliding_attention"} else None
        assert layer.window == (windowed if getattr(given, "use_sliding_window", True) else None)


@pytest.mark.parametrize("case", ["gemma2", "gemma3", "phi3", "qwen3_moe"])
def test_settings_are_those_that_transformers_reads(tmp_path: Path, case: str) -> None:
    path, _ = written(tmp_path / "tiny.gguf", case)
    theirs = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
    ours = open_checkpoint(as_directory(path)).config
    same = [key for key in theirs if key in ours and isinstance(theirs[key], int | float) and "rope" not in key]
    assert len(same) >= 7
    assert {key: ours[key] for key in same} == pytest.approx({key: theirs[key] for key in same})


@pytest.mark.parametrize("case", ["gemma2", "gemma3", "phi3", "qwen3_moe"])
def test_weights_are_those_that_transformers_reads(tmp_path: Path, case: str) -> None:
    path, _ = written(tmp_path / "tiny.gguf", case)
    ours = converted(path)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, config=ours.config, dtype=torch.float32
    )
    found = ours.state_dict()
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)


def test_stacked_matrices_are_multiplied_out_one_by_one(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q8_0
    path, made = written(tmp_path / "tiny.gguf", "qwen3_moe", kind)
    directory = as_directory(path)
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in open_checkpoint(directory).tensors
    with torch.no_grad():
        gates = {name: p.clone() for name, p in made.named_parameters() if name.endswith("mlp.gate.weight")}
        rounded(made, kind)
        for name, parameter in made.named_parameters():
            if name in gates:  # what chooses the MLPs is stored in float32
                parameter.copy_(gates[name].to(torch.bfloat16))
    torch.testing.assert_close(logits(converted(path)), logits(made), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("case", "more", "wrong"),
    [
        ("gemma3", {"attention.sliding_window": 0}, "must have a sliding window in all but every sixth layer"),
        ("gemma3", {"attention.sliding_window_pattern": 4}, "must have a sliding window in all but every sixth layer"),
        ("qwen3_moe", {"expert_shared_count": 1}, "has the settings expert_shared_count"),
        ("gemma2", {"attention.scale": 0.5}, r"has the settings attention\.scale"),
    ],
)
def test_what_is_not_understood_is_refused(
    tmp_path: Path, case: str, more: dict[str, Any], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, settings, keys = CASES[case]
    monkeypatch.setitem(CASES, case, (family, settings, {**keys, **more}))
    path, _ = written(tmp_path / "tiny.gguf", case)
    with pytest.raises(CheckpointError, match=wrong):
        as_directory(path)


def test_routed_experts_of_other_architectures_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", model("qwen2"), more={"qwen2.expert_count": 4})
    with pytest.raises(CheckpointError, match="has routed experts"):
        as_directory(path)


def test_the_largest_models_scale_scores_by_the_hidden_size(tmp_path: Path) -> None:
    for family, layers in (("gemma2", 46), ("gemma3", 62)):
        name, settings, keys = CASES[family]
        small = {"hidden_size": 16, "intermediate_size": 16, "head_dim": 8, "num_hidden_layers": layers}
        made = model(name, **{**settings, **small})
        own = {**keys, "attention.key_length": 8, "attention.value_length": 8}
        path = write_gguf(tmp_path / f"{family}.gguf", made, more={f"{family}.{key}": own[key] for key in own})
        assert open_checkpoint(as_directory(path)).config["query_pre_attn_scalar"] == 16 // 4
