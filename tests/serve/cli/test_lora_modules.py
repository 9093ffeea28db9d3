from pathlib import Path

import pytest
import typer

from serve.cli.lora_modules import lora_modules, spread
from serve.config import LoraModule


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["serve", "m", "--lora-modules", "a=x"], ["serve", "m", "--lora-modules", "a=x"]),
        (
            ["serve", "m", "--lora-modules", "a=x", "b=y", '{"name": 1}', "--port", "1=2"],
            ["serve", "m", *(f"--lora-modules|{v}" for v in ("a=x", "b=y", '{"name": 1}')), "--port", "1=2"],
        ),
        (["serve", "--lora-modules", "a=x", "model"], ["serve", "--lora-modules", "a=x", "model"]),
        (["serve", "m", "--lora-modules=a=x"], ["serve", "m", "--lora-modules=a=x"]),
        (["merge", "a=b", "c=d"], ["merge", "a=b", "c=d"]),
    ],
)
def test_one_flag_may_have_several_values(given: list[str], expected: list[str]) -> None:
    assert spread(given) == [part for item in expected for part in item.split("|")]


def test_the_forms() -> None:
    pair = '[{"name": "c", "path": "z"}, {"name": "d", "path": "w=v"}]'
    values = ["a=x=1", '{"name": "b", "path": "/y", "base_model_name": "base"}', pair, ""]
    assert lora_modules(values) == (
        LoraModule("a", Path("x=1")),
        LoraModule("b", Path("/y"), "base"),
        LoraModule("c", Path("z")),
        LoraModule("d", Path("w=v")),
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a", "must be NAME=PATH, or JSON"),
        ("=x", "must be NAME=PATH"),
        ("a=", "must be NAME=PATH"),
        ("{", "is not valid JSON"),
        ('{"name": "a"}', "must be NAME=PATH, or JSON"),
        ('{"name": "a", "path": "x", "rank": "1"}', "must be NAME=PATH, or JSON"),
        ('{"name": "a", "path": 1}', "must be NAME=PATH, or JSON"),
        ("a b=x", "cannot name an adapter"),
    ],
)
def test_other_values_are_refused(value: str, message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        lora_modules([value])


def test_a_name_stands_once() -> None:
    with pytest.raises(typer.BadParameter, match="'a' is given twice"):
        lora_modules(["a=x", "a=y"])
