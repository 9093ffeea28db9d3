"""Imports run one way, as docs/architecture.md says."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("serve", "kernels", "merge", "benchmarks")
FILES = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

MAY_IMPORT = {
    "kernels": ("kernels",),
    "merge": ("merge",),
    "serve": ("serve", "kernels", "merge.bundle"),
    "benchmarks": PACKAGES,
}
"""Package → what its modules may import of this project, with all that is inside it."""

COMMANDS = Path("serve/cli")
"""A command may import anything where it runs it, inside a function, and for type checkers."""


def imports(path: Path, source: str) -> Iterator[tuple[str, int, bool]]:
    """(imported module, line, whether it is deferred: in a function or for type checkers) of a module."""
    tree = ast.parse(source)
    deferred = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef) or _is_for_type_checkers(block)
        for node in ast.walk(block)
    }
    parts = path.with_suffix("").parts
    package = parts[:-1]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            # `from merge import bundle` imports merge.bundle, or a name of merge.
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            yield name, node.lineno, id(node) in deferred


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def upward(path: Path, source: str) -> list[str]:
    """The imports that the rule forbids, as "file:line imports module"."""
    allowed = MAY_IMPORT[path.parts[0]]
    return [
        f"{path}:{line} imports {name}"
        for name, line, deferred in imports(path, source)
        if name.split(".")[0] in PACKAGES
        and not any(name == one or name.startswith(f"{one}.") for one in allowed)
        and not (deferred and path.is_relative_to(COMMANDS))
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_upwards(package: str):
    files = [path for path in FILES if path.parts[0] == package]
    assert files
    assert [found for path in files for found in upward(path, (ROOT / path).read_text())] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("serve/engine/loop.py", "import merge.run"),
        ("serve/engine/loop.py", "from merge import recipe"),
        ("serve/engine/loop.py", "def f():\n    from merge.lora import x"),
        ("serve/engine/loop.py", "from benchmarks.zoo import x"),
        ("serve/engine/loop.py", "from ...merge.check import x"),
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
        ("serve/cli/merge.py", "if TYPE_CHECKING:\n    from merge.run import Report"),
        ("serve/engine/loop.py", "from . import queue\nfrom ..model import decoder"),
        ("benchmarks/zoo/train.py", "from serve.engine import x\nimport merge.run, kernels"),
        ("merge/run.py", "import mergekit\nfrom servers import x"),
    ],
)
def test_other_imports_are_not(path: str, source: str):
    assert upward(Path(path), source) == []
