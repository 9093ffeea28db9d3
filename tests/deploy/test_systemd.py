"""The unit asks for what the program does."""

import configparser
import shlex
from pathlib import Path

import typer

from serve.cli import app
from serve.cli.options import check_variables
from serve.cli.signals import SERVERS
from serve.config import ServerSettings
from tests.deploy.conftest import DEPLOY


class Unit(configparser.RawConfigParser):
    """systemd's form of INI: names have cases, and may be given more than once."""

    def __init__(self, path: Path):
        super().__init__(strict=False, comment_prefixes=("#",), delimiters=("=",))
        self.optionxform = str
        self.read_string(path.read_text())
        lines = [line.partition("=") for line in path.read_text().splitlines()]
        self.environment = dict(value.split("=", 1) for name, _, value in lines if name == "Environment")


UNIT = Unit(DEPLOY / "overtone.service")


def test_it_runs_a_server_with_variables_that_are_read():
    program, command = shlex.split(UNIT["Service"]["ExecStart"])
    assert program.endswith("/overtone")
    assert command in SERVERS
    assert UNIT.environment["OVERTONE_BUNDLE"].startswith("/")
    check_variables(typer.main.get_command(app._program()), UNIT.environment)


def test_it_is_given_longer_than_the_server_takes_to_drain():
    assert int(UNIT["Service"]["TimeoutStopSec"]) > ServerSettings(bundle=DEPLOY).shutdown_timeout


def test_crashes_restart_it_and_its_user_is_not_root():
    assert UNIT["Service"]["Restart"] == "on-failure"
    assert UNIT["Service"]["User"] not in {"", "root"}


def test_the_docs_install_what_the_unit_runs():
    section = (DEPLOY.parent / "docs" / "operations.md").read_text().partition("### systemd")[2].partition("###")[0]
    assert f"sudo {Path(shlex.split(UNIT['Service']['ExecStart'])[0]).parent}/pip install" in section
    assert f"sudo tee {UNIT['Service']['EnvironmentFile']} " in section
    assert f"useradd --system {UNIT['Service']['User']}" in section
