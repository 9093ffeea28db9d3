"""`overtone eval`: how well a bundle, or a running server, answers prompts with known answers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve.cli.options import option

if TYPE_CHECKING:
    from merge.bundle import Bundle
    from merge.evaluate import Line, Server

_METRICS = "exact, normalized, contains, regex, json, number, choice or overlap"


def command(
    bundle: Annotated[
        Path | None, typer.Argument(help="The bundle's directory; not needed with --url.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        option(
            "--data",
            help="JSON lines with task (an expert's name, or null for none), prompt or messages, answer and, if it "
            "is not exact, metric. Without it a demo's bundle is measured on the demo's prompts.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        option("--metric", help=f"TASK=METRIC, or METRIC for all tasks: {_METRICS}.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, option("--limit", help="Largest number of lines of a task, from the top of the file.", min=1)
    ] = None,
    max_tokens: Annotated[
        int | None,
        option(
            "--max-tokens",
            help="Most tokens of a reply. Default: twice the longest answer of the task plus 16, or 256 if the metric "
            "looks for the answer in the reply.",
            min=1,
        ),
    ] = None,
    chat: Annotated[
        bool | None,
        option(
            "--chat/--completions",
            help="Ask as chats, through the chat template, or as completions. Default: chats if there is a template.",
            show_default=False,
        ),
    ] = None,
    references: Annotated[
        bool, option("--references/--no-references", help="Also run the base and the fine-tunes, if they still exist.")
    ] = True,
    kld_prompts: Annotated[
        int,
        option(
            "--kld-prompts",
            help="Prompts of a task on which next-token distributions are compared with the fine-tune's; 0: none.",
            min=0,
        ),
    ] = 20,
    url: Annotated[
        str | None, option("--url", help="Measure this running server instead of serving the bundle.")
    ] = None,
    api_key: Annotated[str | None, option("--api-key", help="Sent to the server as a bearer token.")] = None,
    prompts: Annotated[int, option("--prompts", help="Without --data: number of prompts of each task.", min=1)] = 50,
    seed: Annotated[int, option("--seed", help="Without --data: seed of the prompts.")] = 0,
    html: Annotated[
        Path | None, option("--html", help="Also write a report with pictures to this file.", show_default=False)
    ] = None,
    progress: Annotated[bool, option("--progress/--no-progress", help="Show the progress.")] = True,
    as_json: Annotated[bool, option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Score the fine-tunes, the base, the backbone, the named experts and the routed model on prompts with answers."""
    if bundle is None and url is None:
        raise typer.BadParameter("give a bundle, or a running server with --url", param_hint="BUNDLE")
    if bundle is None and data is None:
        raise typer.BadParameter("a server without its bundle needs prompts: give a file with --data")
    from transformers.utils import logging  # transformers and torch take a second to import; --help should not

    from merge.bundle import open_bundle
    from merge.bundle.files import replaced
    from merge.evaluate import References, as_text, check_tasks, evaluate, html_page, read_data
    from merge.progress import Progress

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    opened = None if bundle is None else open_bundle(bundle)
    lines = _shipped(opened, prompts, seed) if data is None else read_data(data, metric or (), limit)
    if opened is not None:
        check_tasks(lines, opened.expert_names)
    shown = Progress(progress)
    with _server(opened, url, api_key, shown) as server:
        served = server.served()
        notes = check_tasks(lines, served.experts)
        chats = server.chats(served.backbone) if chat is None else chat
        if not chats and any(line.example.messages is not None for line in lines):
            raise ValueError("the data has messages, but the model has no chat template: give them as prompts")
        found = evaluate(
            partial(server.ask, chat=chats),
            served,
            lines,
            bundle=opened,
            references=References(opened, chats) if opened is not None and references else None,
            compared=kld_prompts,
            max_tokens=max_tokens,
            progress=shown,
            name=server.url if opened is None else opened.manifest.name,
            notes=notes,
        )
    if html is not None:
        with replaced(html.absolute()) as partial_file:
            partial_file.write_text(html_page(found), encoding="utf-8")
    typer.echo(json.dumps(found.as_json(), indent=2) if as_json else as_text(found))
    if html is not None and not as_json:
        typer.echo(f"report: {html}")


def _shipped(bundle: "Bundle | None", per_task: int, seed: int) -> "list[Line]":
    from serve.demo.check import shipped_lines

    assert bundle is not None
    lines = shipped_lines(bundle.expert_names, per_task, seed)
    if lines is None:
        raise ValueError(
            f"{bundle.path} is not the bundle of a demo, which has prompts: give prompts with answers, "
            '--data FILE with JSON lines like {"task": "EXPERT", "prompt": "…", "answer": "…"}'
        )
    return lines


@contextmanager
def _server(bundle: "Bundle | None", url: str | None, api_key: str | None, shown: object) -> "Iterator[Server]":
    from merge.evaluate import Server
    from merge.progress import Progress
    from serve.child import serving

    assert isinstance(shown, Progress)
    if url is not None:
        yield Server(url, api_key)
        return
    assert bundle is not None
    shown.say(f"serving {bundle.path} for the measurement")
    with serving(bundle.path) as child:
        yield Server(child.url, child.api_key)
