import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from kernels.attention import rotate
from serve.model.rope import RopeConfig, RotaryTable


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "yarn", "factor": 16.0},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7},
    ],
)
def test_frequencies_are_those_of_transformers(settings: dict[str, float | str]) -> None:
    given = {**settings, "rope_theta": 5e5, "original_max_position_embeddings": 2048}
    if settings["rope_type"] == "linear":
        del given["original_max_position_embeddings"]
    reference = LlamaConfig(head_dim=64, max_position_embeddings=8192, rope_parameters=dict(given))
    want, attention = ROPE_INIT_FUNCTIONS[str(settings["rope_type"])](reference, torch.device("cpu"))
    config = RopeConfig.parse({"rope_parameters": given, "max_position_embeddings": 8192})
    torch.testing.assert_close(config.inverse_frequencies(64), want, rtol=1e-5, atol=0)
    assert config.attention_factor == pytest.approx(attention)


def test_rotation_keeps_lengths_and_depends_on_distance_alone() -> None:
    table = RotaryTable(RopeConfig(), 16, 64, torch.device("cpu"))
    q, k = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(0))

    def score(at: int, other: int) -> float:
        rotated = [rotate(x, *table.at(torch.tensor([p]), x.dtype)) for x, p in ((q, at), (k, other))]
        assert rotated[0].norm() == pytest.approx(float(q.norm()), rel=1e-5)
        return float((rotated[0] * rotated[1]).sum())

    assert score(5, 3) == pytest.approx(score(60, 58), abs=1e-4)
    assert score(5, 3) != pytest.approx(score(5, 4), abs=1e-3)
