"""`overtone bench latency`: load on a server, ours or another."""

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.cli.options import option


def command(
    url: Annotated[str, typer.Argument(help="The server's address, as in http://127.0.0.1:8000.", show_default=False)],
    requests: Annotated[int, option("--requests", help="Measured requests of a run.", min=1)] = 100,
    warm_up: Annotated[int, option("--warm-up", help="Requests before the measured ones.", min=0)] = 8,
    rate: Annotated[
        list[float] | None, option("--rate", help="Requests per second; repeat the option for a sweep.")
    ] = None,
    users: Annotated[
        list[int] | None, option("--users", help="Closed loop with this number of users, instead of rates.")
    ] = None,
    constant: Annotated[bool, option("--constant", help="Equal gaps instead of Poisson arrivals.")] = False,
    popularity: Annotated[
        str, option("--popularity", help="backbone, identical, distinct, uniform or zipf:ALPHA.")
    ] = "uniform",
    sweep_experts: Annotated[
        str | None, option("--sweep-experts", help="Numbers of distinct experts to compare, for example 0,1,2,4,8.")
    ] = None,
    rounds: Annotated[int, option("--rounds", help="Rounds of --sweep-experts.", min=1)] = 3,
    prompt_length: Annotated[
        str, option("--prompt-length", help="Tokens in a prompt: 32, or a range as in 16-64.")
    ] = "32",
    output_length: Annotated[
        str, option("--output-length", help="Tokens to generate: 32, or a range as in 16-64.")
    ] = "32",
    vocabulary: Annotated[
        int,
        option("--vocabulary", help="Synthetic prompts have token ids from a quarter of this number up to it.", min=1),
    ] = 100,
    prompts: Annotated[
        Path | None, option("--prompts", help="JSON lines with a field prompt, instead of synthetic prompts.")
    ] = None,
    model_for_expert: Annotated[
        str, option("--model-for-expert", help="The server's name for {expert}, for other servers.")
    ] = "{expert}",
    experts: Annotated[str | None, option("--experts", help="Names, instead of those that /v1/models lists.")] = None,
    backbone: Annotated[
        str | None, option("--backbone", help="The server's name for the model without experts.")
    ] = None,
    slo_ttft_ms: Annotated[
        float | None, option("--slo-ttft-ms", help="Goodput counts answers within this time.")
    ] = None,
    slo_tpot_ms: Annotated[
        float | None, option("--slo-tpot-ms", help="Goodput counts answers within this time.")
    ] = None,
    density: Annotated[
        float, option("--density", help="Density of the experts, for the floor in the plot of --sweep-experts.")
    ] = 0.01,
    api_key: Annotated[str | None, option("--api-key", help="Sent as a bearer token.")] = None,
    seed: Annotated[int, option("--seed", help="Seed of all requests and arrivals.")] = 0,
    plot: Annotated[Path | None, option("--plot", help="Write a PNG of the sweep.")] = None,
    as_json: Annotated[bool, option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure an OpenAI-compatible server under load for many experts. Exits with 1 if no request is answered."""
    from serve.bench.command import arrivals_of, counts_of, read_prompts, table  # --help should not wait for it
    from serve.bench.summary import Slo
    from serve.bench.sweep import over_arrivals, over_experts, tax
    from serve.bench.target import discover
    from serve.bench.workload import Lengths, Popularity, Workload

    arrivals = arrivals_of(rate or [], users or [], constant)
    counts = [] if sweep_experts is None else counts_of(sweep_experts)
    workload = Workload(
        requests,
        warm_up,
        Popularity.parse(popularity),
        Lengths.parse(prompt_length),
        Lengths.parse(output_length),
        seed,
        vocabulary,
        () if prompts is None else read_prompts(prompts),
    )
    slo = Slo(slo_ttft_ms, slo_tpot_ms)
    names = None if experts is None else tuple(experts.split(","))
    target = asyncio.run(discover(url, api_key, model_for_expert, names, backbone))
    report: dict[str, Any] = {"url": url, "seed": seed}
    if counts:
        runs = over_experts(target, workload, arrivals[0], counts, rounds, slo, _say)
        report["tax"] = tax(runs)
    else:
        runs = over_arrivals(target, workload, arrivals, slo, _say)
    report["runs"] = [run.as_json() for run in runs]
    if plot is not None:
        from serve.bench.plot import plot_rates, plot_tax  # matplotlib takes a second to import

        if counts:
            plot_tax(runs, plot, density)
        else:
            plot_rates(runs, plot)
    typer.echo(json.dumps(report) if as_json else table(report))
    if all(run.summary.failed == run.summary.requests for run in runs):
        _say("error: no request was answered")
        raise typer.Exit(1)


def _say(text: str) -> None:
    typer.echo(text, err=True)
