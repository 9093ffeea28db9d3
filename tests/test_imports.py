"""Imports run one way, as docs/architecture.md says."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("serve", "kernels", "merge", "benchmarks")
FILES = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

MAY_IMPORT = {
    "kernels": ("kernels",),
    "merge": ("merge",),
    "serve": ("serve", "kernels", "merge.bundle"),
    "serve/bench": ("serve.bench",),
    "serve/demo": ("serve", "serve.demo", "kernels", "merge"),
    "serve/cli": ("serve", "serve.cli", "kernels", "merge.bundle"),
    "benchmarks": (*PACKAGES, "serve.bench", "serve.demo", "serve.cli"),
}
"""Package → what its modules may import of this project, with all that is inside it but the programs."""

PROGRAMS = ("serve.bench", "serve.cli", "serve.demo")
"""They stand above the rest of `serve`, which imports none of them."""

WHERE_IT_RUNS = {"serve/cli": ("merge", "serve.bench", "serve.demo")}
"""What a command may also import, within the function that runs it or for type checkers."""


@cache
def imports(path: Path, source: str) -> tuple[tuple[str, int, bool], ...]:
    """(imported module, line, whether it is deferred: in a function or for type checkers) of a module."""
    return tuple(_imports(path.with_suffix("").parts[:-1], ast.parse(source), deferred=False))


def _imports(package: Sequence[str], block: ast.AST, deferred: bool) -> Iterator[tuple[str, int, bool]]:
    for node in ast.iter_child_nodes(block):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            # `from merge import bundle` imports merge.bundle, or a name of merge.
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_for_type_checkers(node)
            yield from _imports(package, node, deferred or later)
        for name in names:
            yield name, node.lineno, deferred


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _is_within(name: str, packages: Sequence[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in packages)


def _may_import(name: str, allowed: Sequence[str]) -> bool:
    """Whether a module is within what is allowed; a program must be named itself."""
    programs = [program for program in PROGRAMS if _is_within(name, (program,))]
    return _is_within(name, [one for one in allowed if one in programs] if programs else allowed)


def upward(path: Path, source: str) -> list[str]:
    """The imports that the rule forbids, as "file:line imports module"."""
    package = max((one for one in MAY_IMPORT if path.is_relative_to(one)), key=len)
    return [
        f"{path}:{line} imports {name}"
        for name, line, deferred in imports(path, source)
        if name.split(".")[0] in PACKAGES
        and not _may_import(name, MAY_IMPORT[package])
        and not (deferred and _may_import(name, WHERE_IT_RUNS.get(package, ())))
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_upwards(package: str):
    files = [path for path in FILES if path.parts[0] == package]
    assert files
    assert [found for path in files for found in upward(path, (ROOT / path).read_text())] == []


def test_serving_reads_weights_by_the_bundles_reader():
    files = [path for path in FILES if path.parts[0] == "serve"]
    found = [
        (path, line)
        for path in files
        for name, line, _ in imports(path, (ROOT / path).read_text())
        if _is_within(name, ("safetensors",))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("serve/engine/loop.py", "import merge.run"),
        ("serve/engine/loop.py", "from merge import recipe"),
        ("serve/engine/loop.py", "def f():\n    from merge.lora import x"),
        ("serve/engine/loop.py", "from serve.demo.zoo import x"),
        ("serve/engine/loop.py", "from ...merge.check import x"),
        ("serve/engine/loop.py", "from serve.demo import SMOLLM2"),
        ("serve/engine/loop.py", "def f():\n    from serve import cli"),
        ("serve/bench/load.py", "from serve.engine import x"),
        ("serve/demo/check.py", "from serve.bench import x"),
        ("serve/demo/check.py", "from benchmarks.zoo import x"),
        ("serve/cli/demo.py", "def command():\n    from benchmarks.zoo import x"),
        ("serve/cli/demo.py", "from serve.demo import SMOLLM2"),
        ("serve/cli/merge.py", "from merge.run import merge"),
        ("kernels/patch.py", "import serve"),
        ("kernels/patch.py", "from merge.bundle import x"),
        ("merge/run.py", "def f():\n    import kernels.patch"),
        ("merge/run.py", "from serve.model import x"),
        ("merge/run.py", "if TYPE_CHECKING:\n    import benchmarks"),
    ],
)
def test_an_upward_import_is_found(path: str, source: str):
    assert len(upward(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("serve/engine/loop.py", "from merge.bundle import open_bundle"),
        (
            "serve/engine/loop.py",
            "from merge.bundle.digest import x\nfrom kernels import patch\nimport torch, serve.model",
        ),
        ("serve/cli/merge.py", "def command():\n    from merge.run import merge"),
        ("serve/cli/demo.py", "def command():\n    from serve.demo import SMOLLM2"),
        ("serve/cli/app.py", "from serve.cli.options import option"),
        ("serve/demo/check.py", "from merge.evaluate import evaluate\nfrom serve.child import serving"),
        ("benchmarks/zoo/train.py", "from serve.demo.zoo import TASKS"),
        ("serve/cli/merge.py", "if TYPE_CHECKING:\n    from merge.run import Report"),
        ("serve/engine/loop.py", "from . import queue\nfrom ..model import decoder"),
        ("benchmarks/zoo/train.py", "from serve.engine import x\nimport merge.run, kernels"),
        ("merge/run.py", "import mergekit\nfrom servers import x"),
    ],
)
def test_other_imports_are_not(path: str, source: str):
    assert upward(Path(path), source) == []


API = (
    ("errors", "logs", "messages", "openapi_replies"),
    ("context", "text", "schemas"),
    ("security",),
    ("grammar",),
    ("generate",),
    ("loading", "status", "openai"),
    ("openapi", "admin"),
    ("app",),
    ("server",),
)
"""The modules and packages of serve/api, from the ground up: each imports only from the rows below its own."""


def api_upward(path: Path, source: str) -> list[str]:
    """The imports within serve/api that its rows forbid."""
    rows = {name: row for row, names in enumerate(API) for name in names}
    own = path.with_suffix("").parts[2]
    others = [(name.split(".")[2], line) for name, line, _ in imports(path, source) if name.startswith("serve.api.")]
    return [
        f"{path}:{line} imports serve.api.{other}"
        for other, line in others
        if other != own and rows[other] >= rows[own]
    ]


def test_the_packages_of_the_api_form_layers():
    files = [path for path in FILES if path.parts[:2] == ("serve", "api") and path.parts[2] != "__init__.py"]
    assert {path.with_suffix("").parts[2] for path in files} == {name for names in API for name in names}
    assert [found for path in files for found in api_upward(path, (ROOT / path).read_text())] == []


@pytest.mark.parametrize(
    ("path", "source", "count"),
    [
        ("serve/api/text/choice.py", "from serve.api.generate.reply import Reply", 1),
        ("serve/api/context.py", "from serve.api import app, errors", 1),
        ("serve/api/openai/blocks.py", "from serve.api.status import READ", 1),
        ("serve/api/text/choice.py", "from serve.api.text.codec import TextCodec", 0),
        ("serve/api/server.py", "from serve.api.app import create_app", 0),
    ],
)
def test_an_upward_import_within_the_api_is_found(path: str, source: str, count: int):
    assert len(api_upward(Path(path), source)) == count


def test_a_server_imports_no_package_of_an_extra_that_it_does_not_use(monkeypatch: pytest.MonkeyPatch):
    """Not Ray, which `overtone deploy` needs, and not OpenTelemetry unless traces are exported.

    Nor transformers' model code, which takes three processor seconds, before a merge builds its first model.
    """
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    program = (
        "import sys\n"
        "from serve.tracing import tracing_from_environment\n"
        "tracing_from_environment()\n"
        "found = [name for name in sys.modules if name.startswith('opentelemetry')]\n"  # transformers imports it
        "import serve.cli.app, serve.cli.serve, serve.cli.deploy, serve.api.server, serve.api.loading, merge.run\n"
        "found += [name for name in sys.modules if name.split('.')[0] == 'ray' or name.startswith('serve.cluster')]\n"
        "found += [name for name in sys.modules if name == 'transformers.modeling_utils']\n"
        "print(found)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
