"""The options of the commands that serve a bundle, made from the settings, and the settings that they make."""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from serve.cli.lora_modules import lora_modules
from serve.cli.options import byte_size, option
from serve.config import ApiSettings, ConnectionSettings, EngineConfig, ServerSettings, TlsSettings
from serve.config.setting import KEY, Setting

if TYPE_CHECKING:
    from merge.bundle import RouterModel

SETTINGS = (ServerSettings, ApiSettings, ConnectionSettings, EngineConfig, TlsSettings)

Bundle = Annotated[Path, typer.Argument(help="The bundle's directory.", envvar="OVERTONE_BUNDLE", show_default=False)]
BundleOrModel = Annotated[
    Path,
    typer.Argument(
        help="The bundle's directory, that of a Hugging Face model, or a GGUF file.",
        envvar="OVERTONE_BUNDLE",
        show_default=False,
    ),
]

Command = Callable[..., None]


def with_settings(*settings: type[Any], without: Collection[str] = ()) -> Callable[[Command], Command]:
    """Give a command an option for each `Setting` of some settings, in place of its `**options`.

    Args:
        settings: dataclasses.
        without: fields that get no option.
    """

    def give(command: Command) -> Command:
        own = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.kind is not parameter.VAR_KEYWORD
        ]
        made = [_parameter(field) for of in settings for field in _options(of) if field.name not in without]
        parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in (*own, *made)]
        command.__signature__ = inspect.Signature(parameters, return_annotation=None)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
        return command

    return give


def _options(settings: type[Any]) -> Iterator[dataclasses.Field[Any]]:
    return (field for field in dataclasses.fields(settings) if KEY in field.metadata)


def _flags(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    made: Setting = field.metadata[KEY]
    flags = made.flags or (f"--{field.name.replace('_', '-')}",)
    return tuple(f"{flag}/--no-{flag[2:]}" for flag in flags) if field.type is bool else flags


def _name(field: dataclasses.Field[Any]) -> str:
    """The parameter of a field's option, which is named for its first flag."""
    return _flags(field)[0].partition("/")[0].removeprefix("--").replace("-", "_")


def _parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
    made: Setting = field.metadata[KEY]
    default = None if made.repeatable or field.default is dataclasses.MISSING else field.default
    size = {"parser": byte_size, "metavar": "<size>"} if made.size else {}
    how = option(*_flags(field), help=made.help, show_default=made.show_default, **size)
    return inspect.Parameter(
        _name(field), inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[_type(field), how]
    )


def _type(field: dataclasses.Field[Any]) -> Any:
    """The type of an option's value, which `server_settings` makes the field's of."""
    made: Setting = field.metadata[KEY]
    if made.repeatable:
        return (list[Path] | None) if Path in get_args(field.type) else (list[str] | None)
    if get_origin(field.type) is Literal:
        return str  # a wrong word is refused by the settings, wherever it comes from
    return (Path | None) if field.default is dataclasses.MISSING else field.type


def server_settings(options: Mapping[str, Any]) -> ServerSettings:
    """The settings that a command's options ask for.

    Args:
        options: the bundle, and the options' values by the names of their parameters. Settings that the command has no
            option for keep their defaults.

    Raises:
        ValueError: one of them is wrong.
        typer.BadParameter: a LoRA adapter or the files of HTTPS are not complete.
    """

    def part(of: type[Any]) -> dict[str, Any]:
        given = {field.name: options[_name(field)] for field in _options(of) if _name(field) in options}
        repeatable = {field.name for field in _options(of) if field.metadata[KEY].repeatable}
        return {name: tuple(value or ()) if name in repeatable else value for name, value in given.items()}

    server, api, tls = part(ServerSettings), part(ApiSettings), part(TlsSettings)
    server["lora_modules"] = lora_modules(server.get("lora_modules", ()))
    if api.get("engine_timeout") == 0:
        api["engine_timeout"] = None
    if tls.get("certfile") is None and any(tls.values()):
        raise typer.BadParameter("HTTPS needs a certificate", param_hint="--ssl-certfile")
    bundle: Path = options["bundle"]
    if bundle.suffix == ".gguf" and not bundle.is_dir():
        from merge.gguf import as_directory  # torch takes a second to import; --help should not

        bundle = as_directory(bundle, lambda line: typer.echo(line, err=True))
    return ServerSettings(
        bundle,
        **server,
        tls=TlsSettings(**tls) if tls.get("certfile") else None,
        engine=EngineConfig(**part(EngineConfig)),
        api=ApiSettings(**api),
        connections=ConnectionSettings(**part(ConnectionSettings)),
    )


def teach(model: "RouterModel", name: str, prompts: Sequence[str]) -> "RouterModel":
    """The router that also knows a new expert, from prompts that it should answer."""
    from merge.router import add_expert

    return add_expert(model, name, prompts, others=())
