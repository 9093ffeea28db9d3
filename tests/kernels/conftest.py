"""The compiled kernels of every instruction set, for the tests."""

import sys
from dataclasses import replace

import pytest

from kernels.compiled import ISAS, Library, library

SETS = ISAS[: ISAS.index("amx")]
"""Instruction sets with kernels of their own for everything; `amx` has an attention alone."""


@pytest.fixture(params=SETS)
def kernels(request: pytest.FixtureRequest) -> Library:
    """The kernels of one instruction set."""
    return kernels_of(request.param)


@pytest.fixture(params=["torch", *SETS])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Elementwise functions take this path: plain torch or one instruction set."""
    return take_path(request.param, monkeypatch)


def take_path(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    found = None if name == "torch" else kernels_of(name)
    monkeypatch.setattr(sys.modules["kernels.compiled.library"], "library", lambda: found)
    return name


def kernels_of(name: str) -> Library:
    loaded, number = library(), ISAS.index(name)
    if loaded is None:
        pytest.skip("no compiler here")
    if not loaded.supports(number):
        pytest.skip(f"this processor has no {name}")
    return replace(loaded, isa=number)
