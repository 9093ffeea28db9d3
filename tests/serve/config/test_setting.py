from dataclasses import dataclass
from typing import Annotated, Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from serve.cli.server_options import with_settings
from serve.config.setting import check_settings, setting


@dataclass(frozen=True)
class Oven:
    degrees: int = setting(180, "How hot.", least=50)
    minutes: float | None = setting(None, "How long.", seconds=True)
    rack: str = setting("middle", "Where.", "--on-rack", words=("top", "middle"))
    steam: bool = setting(False, "Whether there is water.")
    colour: str = "white"

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"degrees": 40}, "degrees is 40; it must be at least 50$"),
        ({"minutes": 0.0}, "minutes is 0.0; it must be more than 0 seconds, or unset"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"rack": "floor"}, "rack is 'floor'; it must be one of top, middle"),
    ],
)
def test_what_a_field_does_not_allow_is_named(given: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Oven(**given)


def test_fields_become_options_and_variables():
    seen: list[dict[str, Any]] = []

    @with_settings(Oven, without=["steam"])
    def command(dish: Annotated[str, typer.Argument()], **options: Any) -> None:
        seen.append({"dish": dish, **options})

    program = typer.Typer()
    program.command()(command)
    assert CliRunner().invoke(program, ["bread", "--on-rack", "top"], env={"OVERTONE_DEGREES": "230"}).exit_code == 0
    assert seen == [{"dish": "bread", "degrees": 230, "minutes": None, "on_rack": "top"}]
    assert CliRunner().invoke(program, ["bread", "--steam"]).exit_code == 2
    assert get_args(command.__annotations__["degrees"])[1].help == "How hot."
