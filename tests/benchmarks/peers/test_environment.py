import sys
import venv
from pathlib import Path

import pytest

from benchmarks.peers import Environment, PeerError, prepare


def test_another_package_is_another_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("OVERTONE_CACHE_DIR", str(tmp_path))
    one, other = Environment("x", ("a==1",)), Environment("x", ("a==2",))
    assert one.home != other.home
    assert one.home.parent == tmp_path / "peers"


@pytest.fixture
def without_pip(monkeypatch):
    """Environments that nothing is installed into do not need pip, which takes seconds to install."""
    create = venv.create
    monkeypatch.setattr(venv, "create", lambda home, with_pip, clear: create(home, clear=clear))


@pytest.mark.usefixtures("without_pip")
def test_what_is_installed_is_not_installed_again(monkeypatch, tmp_path):
    monkeypatch.setenv("OVERTONE_CACHE_DIR", str(tmp_path))
    environment, said = Environment("empty", ()), list[str]()
    assert prepare(environment, said.append) == environment.python
    assert environment.python.exists()
    assert prepare(environment, said.append) == environment.python
    assert said == [f"installing empty into {environment.home}"]


@pytest.mark.usefixtures("without_pip")
def test_compiling_is_said_to_take_minutes(monkeypatch, tmp_path):
    monkeypatch.setenv("OVERTONE_CACHE_DIR", str(tmp_path))
    environment, said = Environment("empty", (), compiled=True), list[str]()
    prepare(environment, said.append)
    assert said == [f"installing empty into {environment.home}, compiling it takes minutes"]


def test_what_cannot_be_installed_is_named_and_tried_again(monkeypatch, tmp_path):
    monkeypatch.setenv("OVERTONE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    environment = Environment("bad", ("no-such-package-anywhere",))
    for _ in range(2):
        with pytest.raises(PeerError, match=r"-m pip install failed: .*no-such-package-anywhere"):
            prepare(environment, lambda _: None)
        monkeypatch.setattr(venv, "create", lambda *_, **__: None)  # pip is there by now


def test_the_interpreter_is_the_environments(tmp_path):
    assert Environment("x", ()).python != Path(sys.executable)
