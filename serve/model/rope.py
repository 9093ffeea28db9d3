"""Rotary position embedding (Su et al., 2021, "RoFormer") with the Llama family's four ways to stretch it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serve.model.errors import ModelError

ROPE_KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeConfig:
    """How positions become angles.

    Attributes:
        kind: one of `ROPE_KINDS`.
        theta: base of the geometric series of wavelengths.
        factor: by how much the context is stretched.
        original_positions: context length before stretching (llama3, yarn).
        low_freq_factor, high_freq_factor: bounds of llama3's blend, in periods per original context.
        beta_fast, beta_slow: bounds of yarn's blend, in rotations per original context.
        attention_factor: yarn's scale of cos and sin.
        truncate: yarn rounds its bounds outwards to whole dimensions.
    """

    kind: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "RopeConfig":
        """Read `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before) from config.json.

        Raises:
            ModelError: a kind that is not one of `ROPE_KINDS`, a kind without its settings, settings by kind of layer,
                or a null where a number is needed.
        """
        given = {**_settings(raw, "rope_scaling"), **_settings(raw, "rope_parameters")}
        kind = given.get("rope_type") or given.get("type") or "default"
        if kind not in ROPE_KINDS:
            raise ModelError(f"rope type {kind!r} is not implemented; these are: {', '.join(ROPE_KINDS)}")
        if float(given.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0) != 1.0:
            raise ModelError("partial_rotary_factor other than 1 is not implemented")
        theta = _theta(raw, given)
        if kind == "default":
            return cls(theta=theta)
        if raw["max_position_embeddings"] is None:
            raise ModelError("config.json: max_position_embeddings is null; it must be a number")
        positions = int(raw["max_position_embeddings"])
        original = int(
            raw.get("original_max_position_embeddings") or given.get("original_max_position_embeddings") or positions
        )
        factor = given.get("factor") or (positions / original if kind == "yarn" else None)
        if factor is None:
            raise ModelError(f"rope type {kind!r} needs a 'factor'")
        if kind == "llama3" and not {"low_freq_factor", "high_freq_factor"} <= given.keys():
            raise ModelError("rope type 'llama3' needs 'low_freq_factor' and 'high_freq_factor'")
        return cls(
            kind=kind,
            theta=theta,
            factor=float(factor),
            original_positions=original,
            low_freq_factor=float(given.get("low_freq_factor") or 1.0),
            high_freq_factor=float(given.get("high_freq_factor") or 4.0),
            beta_fast=float(given.get("beta_fast") or 32.0),
            beta_slow=float(given.get("beta_slow") or 1.0),
            attention_factor=_yarn_attention(given, float(factor)) if kind == "yarn" else 1.0,
            truncate=bool(given.get("truncate", True)),
        )

    def inverse_frequencies(self, head_dim: int) -> Tensor:
        """Radians per position of each pair of dimensions: [head_dim / 2] float32."""
        plain = 1.0 / self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "llama3":
            return self._llama3(plain)
        if self.kind == "yarn":
            return self._yarn(plain, head_dim)
        return plain

    def _llama3(self, plain: Tensor) -> Tensor:
        """Llama 3.1: long wavelengths are stretched, short ones kept, a linear blend between them."""
        periods = self.original_positions * plain / (2 * math.pi)
        blend = (periods - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return torch.lerp(plain / self.factor, plain, blend.clamp(0, 1))

    def _yarn(self, plain: Tensor, head_dim: int) -> Tensor:
        """YaRN (Peng et al., 2023, eq. 23): as llama3, but the blend is linear in the dimension's number."""

        def dimension(rotations: float) -> float:
            """Dimension (pair) that turns `rotations` times within the original context."""
            return head_dim * math.log(self.original_positions / (rotations * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        span = (high - low) or 0.001
        stretched = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
        return torch.lerp(plain, plain / self.factor, stretched)


def _settings(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    given = raw.get(key)
    if given is not None and not isinstance(given, dict):
        raise ModelError(f"config.json: {key} is {given!r}; it must be an object of rope settings or null")
    kinds = [name for name, value in (given or {}).items() if isinstance(value, dict)]
    if kinds:
        raise ModelError(
            f"config.json: {key} has settings by kind of layer ({', '.join(kinds)}), which is not implemented: "
            "all layers must share one rope"
        )
    return given or {}


def _theta(raw: Mapping[str, Any], given: Mapping[str, Any]) -> float:
    for fields in (given, raw):
        if fields.get("rope_theta") is not None:
            return float(fields["rope_theta"])
    if "rope_theta" in given or "rope_theta" in raw:
        raise ModelError("config.json: rope_theta is null; it must be a number (transformers' default is 10000)")
    return 10_000.0


def _yarn_attention(given: Mapping[str, Any], factor: float) -> float:
    """YaRN's temperature, 0.1 ln(factor) + 1, or the ratio of two of them where the model names both mscales."""
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])

    def scale(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if given.get("mscale") and given.get("mscale_all_dim"):
        return scale(float(given["mscale"])) / scale(float(given["mscale_all_dim"]))
    return scale(1.0)


class RotaryTable:
    """cos and sin of every position's angles, computed once.

    Attributes:
        cos: [positions, head_dim] float32, both halves alike, times the attention factor.
        sin: the same for sin, its first half negated: what the other half of a pair is multiplied by.
    """

    def __init__(self, config: RopeConfig, head_dim: int, positions: int, device: torch.device) -> None:
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), config.inverse_frequencies(head_dim))
        cos, sin = angles.cos() * config.attention_factor, angles.sin() * config.attention_factor
        self.cos = torch.cat([cos, cos], dim=1).to(device)
        self.sin = torch.cat([-sin, sin], dim=1).to(device)

    def at(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each [T, 1, head_dim] in `dtype`, for positions [T] int64."""
        return self.cos[positions].to(dtype).unsqueeze(1), self.sin[positions].to(dtype).unsqueeze(1)
