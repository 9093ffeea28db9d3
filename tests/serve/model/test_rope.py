from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from kernels.attention import rotate
from serve.model import ModelError
from serve.model.rope import RopeConfig, RotaryTable, parse_ropes

SHORT, LONG = [1 + 0.01 * pair for pair in range(32)], [1 + 0.5 * pair for pair in range(32)]


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "yarn", "factor": 16.0},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7},
        {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.8},
        {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": 32.0},
        {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "attention_factor": 1.3},
        {"rope_type": "longrope", "short_factor": SHORT[:24], "long_factor": LONG[:24], "partial_rotary_factor": 0.75},
    ],
)
def test_frequencies_are_those_of_transformers(settings: dict[str, Any]) -> None:
    given = {**settings, "rope_theta": 5e5, "original_max_position_embeddings": 2048}
    if settings["rope_type"] == "linear":
        del given["original_max_position_embeddings"]
    reference = LlamaConfig(head_dim=64, max_position_embeddings=8192, rope_parameters=dict(given))
    want, attention = ROPE_INIT_FUNCTIONS[str(settings["rope_type"])](reference, torch.device("cpu"))
    config = RopeConfig.parse({"rope_parameters": given, "max_position_embeddings": 8192}, partial=True)
    torch.testing.assert_close(config.inverse_frequencies(64, 2048), want, rtol=1e-5, atol=0)
    assert config.attention_factor == pytest.approx(attention)


def test_longrope_has_other_factors_for_long_contexts() -> None:
    given = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "rope_theta": 1e4}
    settings = {"max_position_embeddings": 8192, "rope_parameters": {**given, "original_max_position_embeddings": 2048}}
    reference = LlamaConfig(head_dim=64, **settings)
    config = RopeConfig.parse(settings)
    for positions in (2048, 2049, 8192):
        want, _ = ROPE_INIT_FUNCTIONS["longrope"](reference, torch.device("cpu"), seq_len=positions)
        torch.testing.assert_close(config.inverse_frequencies(64, positions), want, rtol=1e-5, atol=0)


def test_dynamic_stretches_what_is_longer_than_the_models_own_context() -> None:
    settings = {"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}
    reference, config = LlamaConfig(head_dim=64, **settings), RopeConfig.parse(settings)
    assert config.longest_positions == 8192
    for positions in (100, 2048, 2049, 8192):
        want, _ = ROPE_INIT_FUNCTIONS["dynamic"](reference, torch.device("cpu"), seq_len=positions)
        torch.testing.assert_close(config.inverse_frequencies(64, positions), want, rtol=1e-5, atol=0)


def test_settings_by_kind_of_layer() -> None:
    kinds = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, "sliding_attention": {}}
    ropes = parse_ropes({"rope_parameters": kinds, "max_position_embeddings": 64}, kinds)
    assert ropes == {
        "full_attention": RopeConfig("linear", 1e6, factor=8.0, original_positions=64),
        "sliding_attention": RopeConfig(),
    }
    with pytest.raises(ModelError, match="for full_attention, sliding_attention layers, but none for other ones"):
        parse_ropes({"rope_parameters": kinds}, ["other"])


def test_three_equal_positions_of_text_are_one() -> None:
    given = {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 1e6}
    assert RopeConfig.parse(given) == RopeConfig(theta=1e6)


def test_rotation_keeps_lengths_and_depends_on_distance_alone() -> None:
    table = RotaryTable(RopeConfig(), 16, 64, torch.device("cpu"))
    q, k = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(0))

    def score(at: int, other: int) -> float:
        rotated = [rotate(x, *table.at(torch.tensor([p]), x.dtype)) for x, p in ((q, at), (k, other))]
        assert rotated[0].norm() == pytest.approx(float(q.norm()), rel=1e-5)
        return float((rotated[0] * rotated[1]).sum())

    assert score(5, 3) == pytest.approx(score(60, 58), abs=1e-4)
    assert score(5, 3) != pytest.approx(score(5, 4), abs=1e-3)
