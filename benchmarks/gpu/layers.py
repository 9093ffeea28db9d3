"""Layers of two models' shapes, random experts for them, and how far a result is from the truth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.expert_linear import ExpertBank, LowRankBank

DENSITY = 0.01
RANK = 16

LLAMA = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
QWEN = {"qkv": (1152, 896), "o": (896, 896), "gate_up": (9728, 896), "down": (896, 4864)}
"""Rows and columns of the linear layers of Llama-3.1-8B and Qwen2.5-0.5B."""

SMALL = {"qkv": (96, 64), "down": (64, 160)}
"""What is tried out on a CPU."""


def shapes(smoke: bool) -> dict[str, tuple[int, int]]:
    """The layers by name."""
    if smoke:
        return {f"small_{name}": shape for name, shape in SMALL.items()}
    return {f"{model}_{name}": shape for model, of in (("llama", LLAMA), ("qwen", QWEN)) for name, shape in of.items()}


def filled_bank(
    slots: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, seed: int = 0
) -> ExpertBank:
    """Random experts of one entry in a hundred, ascending columns, made on the device."""
    rows, columns = shape
    entries = max(1, round(DENSITY * columns))
    bank = ExpertBank.allocate(slots, rows, columns, entries, dtype, device)
    fill(bank, torch.Generator(device=device).manual_seed(seed))
    return bank


def fill(bank: ExpertBank, generator: torch.Generator) -> None:
    """Put random experts into all slots of a bank whose columns fit 15 bits."""
    device, stride = bank.index.device, bank.in_features // bank.entries
    place = torch.randint(stride, bank.index.shape, generator=generator, device=device)
    place += stride * torch.arange(bank.entries, device=device)[:, None]
    bank.index.view(torch.int16).copy_(place.to(torch.int16))
    if bank.scale is not None:
        bank.value.copy_(torch.randint(-127, 128, bank.value.shape, generator=generator, device=device))
        bank.scale.fill_(bank.in_features**-0.5 / 70)
    else:
        values = torch.randn(bank.value.shape, generator=generator, device=device)
        bank.value.copy_(values * bank.in_features**-0.5)


def filled_low_rank(slots: int, shape: tuple[int, int], device: torch.device, seed: int = 0) -> LowRankBank:
    """Random LoRAs of rank 16 in bf16."""
    rows, columns = shape
    bank = LowRankBank.allocate(slots, [(rows, RANK)], columns, torch.bfloat16, device)
    generator = torch.Generator(device=device).manual_seed(seed)
    for tensor, scale in ((bank.a, columns**-0.5), (bank.b, 0.1)):
        tensor.copy_(torch.randn(tensor.shape, generator=generator, device=device) * scale)
    bank.scale.fill_(1.0)
    bank.ranks.fill_(RANK)
    return bank


def layer(
    tokens: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """An input `[T, K]`, weight `[N, K]` and bias `[N]`."""
    generator = torch.Generator(device=device).manual_seed(seed)
    rows, columns = shape
    x = torch.randn(tokens, columns, generator=generator, device=device)
    weight = torch.randn(rows, columns, generator=generator, device=device) * columns**-0.5
    return x.to(dtype), weight.to(dtype), torch.randn(rows, generator=generator, device=device).to(dtype)


def relative(found: Tensor, want: Tensor) -> float:
    """Norm of the difference over the norm of the expected tensor; infinite if a number is not finite."""
    if not bool(torch.isfinite(found).all()):
        return math.inf
    found, want = found.double().cpu(), want.double().cpu()
    return float((found - want).norm() / want.norm())
