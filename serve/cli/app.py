"""The program: its commands, and how errors are reported."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from serve.cli import bench, check, demo, deploy, export, health, init, inspect, merge, route, router, serve
from serve.cli import eval as evaluate
from serve.cli.lora_modules import spread
from serve.cli.options import check_environment, check_variables
from serve.version import overtone_version

COMMANDS: Mapping[str, Callable[..., Any]] = {
    "check": check.command,
    "demo": demo.command,
    "deploy": deploy.command,
    "eval": evaluate.command,
    "export": export.command,
    "health": health.command,
    "init": init.command,
    "inspect": inspect.command,
    "merge": merge.command,
    "route": route.command,
    "serve": serve.command,
}
"""Name → function; its docstring is the command's help."""

ROUTER: Mapping[str, Callable[..., Any]] = {"train": router.train}
"""What `overtone router` runs."""

BENCHMARKS: Mapping[str, Callable[..., Any]] = {"latency": bench.command}
"""What `overtone bench` runs."""


def main(arguments: Sequence[str]) -> None:
    """Run one command and exit: 0, 1 if it failed, 2 if the command line is wrong.

    An error that the user can fix is one line on stderr. Any other error is a bug of this program and has a
    traceback.
    """
    try:
        check_environment()
        program = typer.main.get_command(_program())
        if not {"--help", "--version"}.intersection(arguments):
            check_variables(program, os.environ)
        code = program.main(spread(arguments), prog_name="overtone", standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message(), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader closed stdout. The interpreter must not try to flush the rest to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError, ImportError) as error:
        _fail("; ".join((str(error), *getattr(error, "__notes__", ()))), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _program() -> typer.Typer:
    """All commands under one program."""
    program = typer.Typer(
        name="overtone",
        help="Serve many fine-tunes of one language model as one model.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    for name, command in COMMANDS.items():
        program.command(name)(command)
    for title, help_, commands in (
        ("bench", "Measure a running server.", BENCHMARKS),
        ("router", "Make a router without a merge.", ROUTER),
    ):
        group = typer.Typer(help=help_)
        group.callback()(lambda: None)  # a group of one command stays a group
        for name, command in commands.items():
            group.command(name)(command)
        program.add_typer(group, name=title)
    program.callback()(_options)
    return program


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"overtone {overtone_version()}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Serve many fine-tunes of one language model as one model."""


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split()) or "unknown"
    typer.echo(f"error: {line}", err=True)
    sys.exit(code)
