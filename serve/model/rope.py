"""Rotary position embedding (Su et al., 2021, "RoFormer") with the ways in which the served families stretch it."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serve.model.errors import ModelError

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")

_FIELDS = ("rope_scaling", "rope_parameters")
_OTHER_NAMES = {"su": "longrope", "mrope": "default"}
"""`su` is what Phi-3's first configurations call longrope; with text alone the three positions of mrope are one."""


@dataclass(frozen=True)
class RopeConfig:
    """How positions become angles.

    Attributes:
        kind: one of `ROPE_KINDS`, or "none": no position encoding.
        theta: base of the geometric series of wavelengths.
        part: the share of each head's dimensions that is rotated, the first ones.
        factor: by how much the context is stretched.
        original_positions: context length before stretching (dynamic, llama3, yarn, longrope).
        low_freq_factor, high_freq_factor: bounds of llama3's blend, in periods per original context.
        beta_fast, beta_slow: bounds of yarn's blend, in rotations per original context.
        attention_factor: scale of cos and sin (yarn, longrope).
        truncate: yarn rounds its bounds outwards to whole dimensions.
        short_factor, long_factor: longrope's factor of each wavelength, in contexts up to the original length and in
            longer ones.
    """

    kind: str = "default"
    theta: float = 10_000.0
    part: float = 1.0
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @classmethod
    def parse(
        cls, raw: Mapping[str, Any], kind: str | None = None, theta: float = 10_000.0, partial: bool = False
    ) -> "RopeConfig":
        """Read `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before) from config.json.

        Args:
            raw: config.json.
            kind: of the layers, whose settings are read if config.json has them by kind of layer.
            theta: the base if config.json does not have one.
            partial: whether the family's attention can leave a part of each head as it is.

        Raises:
            ModelError: a kind that is not one of `ROPE_KINDS`, a kind without its settings, or null in place of a
                number.
        """
        given = {**_settings(raw, "rope_scaling", kind), **_settings(raw, "rope_parameters", kind)}
        said = given.get("rope_type") or given.get("type") or "default"
        name = "longrope" if said == "yarn" and "long_factor" in given else _OTHER_NAMES.get(said, said)
        if name not in ROPE_KINDS:
            raise ModelError(f"rope type {name!r} is not implemented; these are: {', '.join(ROPE_KINDS)}")
        part = float(given.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0)
        if part != 1.0 and not partial:
            raise ModelError("partial_rotary_factor other than 1 is not implemented for this architecture")
        if not 0 < part <= 1:
            raise ModelError(f"partial_rotary_factor is {part}; it must be above 0 and at most 1")
        theta = _theta(raw, given, theta)
        if name == "default":
            return cls(theta=theta, part=part)
        if raw["max_position_embeddings"] is None:
            raise ModelError("config.json: max_position_embeddings is null; it must be a number")
        positions = int(raw["max_position_embeddings"])
        original = int(
            raw.get("original_max_position_embeddings") or given.get("original_max_position_embeddings") or positions
        )
        factor = given.get("factor") or (positions / original if name in {"yarn", "longrope"} else None)
        if factor is None:
            raise ModelError(f"rope type {name!r} needs a 'factor'")
        if name == "llama3" and not {"low_freq_factor", "high_freq_factor"} <= given.keys():
            raise ModelError("rope type 'llama3' needs 'low_freq_factor' and 'high_freq_factor'")
        return cls(
            kind=name,
            theta=theta,
            part=part,
            factor=float(factor),
            original_positions=positions if name == "dynamic" else original,
            low_freq_factor=float(given.get("low_freq_factor") or 1.0),
            high_freq_factor=float(given.get("high_freq_factor") or 4.0),
            beta_fast=float(given.get("beta_fast") or 32.0),
            beta_slow=float(given.get("beta_slow") or 1.0),
            attention_factor=_attention_factor(name, given, float(factor), original),
            truncate=bool(given.get("truncate", True)),
            short_factor=_factors(given, "short_factor") if name == "longrope" else (),
            long_factor=_factors(given, "long_factor") if name == "longrope" else (),
        )

    @property
    def longest_positions(self) -> int:
        """The longest context that a stretching beyond the model's own length is for; 0: there is none."""
        return int(self.original_positions * self.factor) if self.kind == "dynamic" else 0

    def rotated(self, head_dim: int) -> int:
        """How many of a head's dimensions are rotated."""
        return int(head_dim * self.part)

    def check(self, head_dim: int) -> None:
        """Refuse settings that do not fit the heads.

        Raises:
            ModelError: the message says what does not fit.
        """
        rotated = self.rotated(head_dim)
        if self.part != 1.0 and (rotated % 2 or not rotated):
            raise ModelError(f"partial_rotary_factor {self.part} of head_dim {head_dim} is not an even number above 0")
        for name, factors in (("short_factor", self.short_factor), ("long_factor", self.long_factor)):
            if self.kind == "longrope" and len(factors) != rotated // 2:
                raise ModelError(f"rope type 'longrope': {name} has {len(factors)} numbers; it needs {rotated // 2}")

    def inverse_frequencies(self, head_dim: int, positions: int = 0) -> Tensor:
        """Radians per position of each pair of dimensions: [rotated / 2] float32.

        Args:
            head_dim: of each head.
            positions: length of the longest context; dynamic and longrope stretch longer ones than the original.
        """
        rotated = self.rotated(head_dim)
        exponents = torch.arange(0, rotated, 2, dtype=torch.float32) / rotated
        if self.kind == "none":
            return torch.zeros_like(exponents)
        theta, stretches = self.theta, positions > self.original_positions
        if self.kind == "dynamic" and stretches:
            # NTK-aware scaling as in transformers: the base that the longest context asks for.
            grown = self.factor * positions / self.original_positions - (self.factor - 1)
            theta *= grown ** (rotated / (rotated - 2))
        plain = 1.0 / theta**exponents
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "llama3":
            return self._llama3(plain)
        if self.kind == "yarn":
            return self._yarn(plain, rotated)
        if self.kind == "longrope":
            return plain / torch.tensor(self.long_factor if stretches else self.short_factor)
        return plain

    def _llama3(self, plain: Tensor) -> Tensor:
        """Llama 3.1: long wavelengths are stretched, short ones kept, a linear blend between them."""
        periods = self.original_positions * plain / (2 * math.pi)
        blend = (periods - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return torch.lerp(plain / self.factor, plain, blend.clamp(0, 1))

    def _yarn(self, plain: Tensor, rotated: int) -> Tensor:
        """YaRN (Peng et al., 2023, eq. 23): as llama3, but the blend is linear in the dimension's number."""

        def dimension(rotations: float) -> float:
            """Dimension (pair) that turns `rotations` times within the original context."""
            return rotated * math.log(self.original_positions / (rotations * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotated - 1)
        span = (high - low) or 0.001
        stretched = ((torch.arange(rotated // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
        return torch.lerp(plain, plain / self.factor, stretched)


PLAIN_ROPE, NO_ROPE = RopeConfig(), RopeConfig(kind="none")
"""The rope of layers without scaling, and of layers without position encoding."""


def parse_ropes(
    raw: Mapping[str, Any], kinds: Collection[str], theta: float = 10_000.0, partial: bool = False
) -> dict[str, RopeConfig]:
    """The rope of each kind of layer; arguments as of `RopeConfig.parse`."""
    return {kind: RopeConfig.parse(raw, kind, theta, partial) for kind in kinds}


def nested_kinds(raw: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """The fields of config.json that have rope settings by kind of layer, with those kinds."""
    found = {key: [name for name, value in _object(raw, key).items() if isinstance(value, dict)] for key in _FIELDS}
    return {key: names for key, names in found.items() if names}


def _settings(raw: Mapping[str, Any], key: str, kind: str | None) -> dict[str, Any]:
    given = _object(raw, key)
    nested = {name: value for name, value in given.items() if isinstance(value, dict)}
    if not nested:
        return given
    if kind not in nested:
        raise ModelError(f"config.json: {key} has settings for {', '.join(nested)} layers, but none for {kind} ones")
    return nested[kind]


def _object(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    given = raw.get(key)
    if given is not None and not isinstance(given, dict):
        raise ModelError(f"config.json: {key} is {given!r}; it must be an object of rope settings or null")
    return given or {}


def _theta(raw: Mapping[str, Any], given: Mapping[str, Any], usual: float) -> float:
    for fields in (given, raw):
        if fields.get("rope_theta") is not None:
            return float(fields["rope_theta"])
    if "rope_theta" in given or "rope_theta" in raw:
        raise ModelError(f"config.json: rope_theta is null; it must be a number (transformers' default is {usual:.0f})")
    return usual


def _factors(given: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values = given.get(key)
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        raise ModelError(f"rope type 'longrope' needs {key!r}, a list of numbers")
    return tuple(map(float, values))


def _attention_factor(kind: str, given: Mapping[str, Any], factor: float, original: int) -> float:
    """YaRN's temperature, 0.1 ln(factor) + 1, or the ratio of two of them if the model has both mscales.

    LongRoPE's (Ding et al., 2024) is sqrt(1 + ln(factor) / ln(original)).
    """
    if kind not in {"yarn", "longrope"}:
        return 1.0
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    if kind == "longrope":
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))

    def scale(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if given.get("mscale") and given.get("mscale_all_dim"):
        return scale(float(given["mscale"])) / scale(float(given["mscale_all_dim"]))
    return scale(1.0)


class RotaryTable:
    """cos and sin of every position's angles, computed once.

    Attributes:
        cos: [positions, rotated] float32, both halves alike, times the attention factor; [1, rotated] if positions
            have no effect.
        sin: the same for sin, its first half negated: what the other half of a pair is multiplied by.
    """

    def __init__(self, config: RopeConfig, head_dim: int, positions: int, device: torch.device) -> None:
        frequencies = config.inverse_frequencies(head_dim, positions)
        self._rows = 1 if config.kind == "none" else positions
        angles = torch.outer(torch.arange(self._rows, dtype=torch.float32), frequencies)
        cos, sin = angles.cos() * config.attention_factor, angles.sin() * config.attention_factor
        self.cos = torch.cat([cos, cos], dim=1).to(device)
        self.sin = torch.cat([-sin, sin], dim=1).to(device)

    def at(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each [T, 1, rotated] in `dtype`, for positions [T] int64."""
        positions = positions if self._rows > 1 else torch.zeros_like(positions)
        return self.cos[positions].to(dtype).unsqueeze(1), self.sin[positions].to(dtype).unsqueeze(1)
