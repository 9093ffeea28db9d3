"""The paths that attention can take."""

import pytest

from kernels.compiled import ISAS
from tests.kernels.conftest import take_path


@pytest.fixture(params=["torch", *ISAS])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Attention takes this path: plain torch or one instruction set."""
    return take_path(request.param, monkeypatch)
