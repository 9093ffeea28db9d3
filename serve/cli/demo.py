"""`overtone demo`: the embedded models, merged and served."""

import json
import sys
from typing import Annotated

import typer

from serve.cli.options import option


def command(
    host: Annotated[str, option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, option("--port", help="TCP port; 0 takes a free one.")] = 8000,
    check: Annotated[bool, option("--check", help="Measure instead of serving, over HTTP on a free port.")] = False,
    prompts: Annotated[int, option("--prompts", help="With --check: unseen prompts a task.", min=1)] = 50,
    as_json: Annotated[bool, option("--json", help="With --check: print one JSON document.")] = False,
) -> int:
    """Merge the embedded models (once; the bundle is kept in the cache directory) and serve them, routed."""
    # torch takes a second to import; --help should not
    from benchmarks.demo import GOAL, TINY
    from merge.bundle import open_bundle
    from serve.api.server import listen, run
    from serve.config import ApiSettings, ServerSettings

    if as_json and not check:
        raise typer.BadParameter("--json goes with --check; without it the demo serves", param_hint="--json")
    demo = TINY
    if check:
        bundle = demo.bundle()
        result = demo.measure(bundle, prompts)
        document = {"model": open_bundle(bundle).manifest.name, **result.as_json()}
        typer.echo(json.dumps(document, indent=2) if as_json else result.as_text())
        average = result.average
        if average.routed < GOAL * average.fine_tune:
            share = average.routed / average.fine_tune if average.fine_tune else 0.0
            typer.echo(
                f"error: routed reaches {share:.1%} of the fine-tunes' average; the goal is {GOAL:.0%}", err=True
            )
            return 1
        return 0

    listen(host, port).close()  # a port that is taken should be said before the merge, not after it
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
