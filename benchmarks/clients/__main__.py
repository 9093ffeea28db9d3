"""`python -m benchmarks.clients`: exits with 1 if one of them finds a fault."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.clients.guidellm import run_guidellm
from benchmarks.clients.rows import Row, run_client
from benchmarks.clients.schemathesis import attack_document
from benchmarks.clients.sdks import CLIENTS
from benchmarks.clients.shapes import SHAPES, run_shape
from benchmarks.clients.vllm_bench import bench_serve
from benchmarks.server import at_least, bundle_of, command_line, server_process, show
from merge.bundle import read_template
from serve.demo.smollm2 import smollm2_bundle

_TEMPLATE = Path(__file__).with_name("tools.jinja")
_CHATML = Path(__file__).with_name("tools_chatml.jinja")
_OWN_SERVERS = ("vllm", "guidellm", "schemathesis")
_SHAPES = "shapes"
_NAMES = (*CLIENTS, _SHAPES, *_OWN_SERVERS)


def main() -> int:
    """Run the command line."""
    parser = command_line(
        "benchmarks.clients", "Send requests to the server with third-party clients.", "the demo's real model"
    )
    parser.add_argument(
        "--only", action="append", choices=_NAMES, help="run only this client; may be given several times"
    )
    parser.add_argument("--url", help="address of a running server, as in http://127.0.0.1:8000 (default: start one)")
    parser.add_argument("--tiny", action="store_true", help="serve the embedded models instead of the real model")
    parser.add_argument("--model", default="backbone", help="model of the requests (default backbone)")
    parser.add_argument(
        "--requests",
        type=at_least(1),
        default=64,
        help="requests of vllm bench serve, and of guidellm for each route (default 64)",
    )
    parser.add_argument(
        "--examples", type=at_least(1), default=50, help="examples of schemathesis for each operation (default 50)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of schemathesis (default 0)")
    arguments = parser.parse_args()
    wanted = tuple(arguments.only or _NAMES)
    report: dict[str, Any] = {}
    if rows := _rows(arguments, wanted):
        report["clients"] = [row.document() for row in rows]
    if arguments.url is None:  # these start servers that are set up for them
        if "vllm" in wanted:
            report["vllm_bench_serve"] = bench_serve(_bundle(arguments), arguments.requests, _say)
        if "guidellm" in wanted:
            report["guidellm"] = run_guidellm(_bundle(arguments), _options(arguments), arguments.requests, _say)
        if "schemathesis" in wanted:
            report["schemathesis"] = attack_document(_bundle(arguments), arguments.examples, arguments.seed, _say)
    report["clean"] = clean(report)
    text = "\n".join([*map(str, rows), *(f"{name}: {value}" for name, value in report.items() if name != "clients")])
    return show(arguments, report, text, report["clean"])


def clean(report: dict[str, Any]) -> bool:
    """Whether no call failed, every request of the load generators was answered, and schemathesis found nothing."""
    failed = any(row["failures"] for row in report.get("clients", ()))
    routes = report.get("guidellm", {}).values()
    failed |= any(route["errored"] or route["incomplete"] for route in routes if isinstance(route, dict))
    vllm, schemathesis = report.get("vllm_bench_serve", {}), report.get("schemathesis", {})
    return not (failed or vllm.get("failed") or schemathesis.get("failures"))


def _rows(arguments: argparse.Namespace, wanted: tuple[str, ...]) -> list[Row]:
    clients = [name for name in CLIENTS if name in wanted]
    if not clients and _SHAPES not in wanted:
        return []
    with _server(arguments) as url:
        rows = [run_client(name, CLIENTS[name], url, arguments.model, _say) for name in clients]
        if _SHAPES in wanted:
            rows += [run_shape(name, url, arguments.model) for name in SHAPES]
    return rows


@contextlib.contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[str]:
    """The URL of the server to ask."""
    if arguments.url is not None:
        yield str(arguments.url).rstrip("/")
        return
    with server_process(_bundle(arguments), _options(arguments)) as server:
        yield server.url


def _bundle(arguments: argparse.Namespace) -> Path:
    if arguments.bundle is not None or arguments.tiny:
        return bundle_of(arguments)
    return smollm2_bundle()


def _options(arguments: argparse.Namespace) -> list[str]:
    options, template = ["--log-level", "warning"], tool_template(_bundle(arguments) / "backbone")
    return options if template is None else [*options, "--chat-template", str(template)]


def tool_template(model: Path) -> Path | None:
    """A chat template that takes tools, for a model whose own does not; None if it does."""
    own = read_template(model)
    if own is not None and "tools" in own.for_tools:
        return None
    return _CHATML if own is not None and "<|im_start|>" in own.source else _TEMPLATE


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
