"""The compiled kernels of every instruction set, for the tests."""

import sys
from dataclasses import replace

import pytest

from kernels.compiled import ISAS, Library, library


@pytest.fixture(params=ISAS)
def kernels(request: pytest.FixtureRequest) -> Library:
    """The kernels of one instruction set."""
    return kernels_of(request.param)


@pytest.fixture(params=["torch", *ISAS])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Elementwise functions and attention take this path: plain torch or one instruction set."""
    found = None if request.param == "torch" else kernels_of(request.param)
    monkeypatch.setattr(sys.modules["kernels.compiled.library"], "library", lambda: found)
    return str(request.param)


def kernels_of(name: str) -> Library:
    loaded, number = library(), ISAS.index(name)
    if loaded is None:
        pytest.skip("no compiler here")
    if not loaded.supports(number):
        pytest.skip(f"this processor has no {name}")
    return replace(loaded, isa=number)
