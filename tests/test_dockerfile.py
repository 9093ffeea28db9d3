"""The image is linted; its install steps run in a fresh environment, for minutes, if OVERTONE_TEST_INSTALL=1."""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from serve.cli.app import COMMANDS, _program
from serve.cli.options import check_variables

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = [
    tuple(line.split(maxsplit=1))
    for line in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
    if line.strip()
]


def of(kind: str, stage: str | None = None) -> list[str]:
    """Arguments of the instructions of a kind, of one stage or all."""
    current, found = "", []
    for name, rest in INSTRUCTIONS:
        if name == "FROM":
            current = rest.split(" AS ")[1]
        if name == kind and stage in {None, current}:
            found.append(" ".join(rest.split()))
    return found


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    assert hadolint, "hadolint is missing: pip install -e '.[dev]'"
    done = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_bases_are_images_with_versions_or_stages_before():
    stages: set[str] = set()
    images = dict(argument.split("=", 1) for argument in of("ARG") if argument.startswith("PYTHON_IMAGE="))
    for line in of("FROM"):
        base, stage = line.split(" AS ")
        base = images.get(base.strip("${}"), base)
        if base not in stages:
            image, _, tag = base.partition(":")
            assert tag not in {"", "latest"}
            assert "." not in image  # a short name, no registry's host
        stages.add(stage)
    assert {"cpu", "gpu"} <= stages


def test_nobody_is_root_and_health_is_asked():
    assert of("USER") == of("USER", "runtime") == ["10001"]
    check = json.loads(of("HEALTHCHECK", "runtime")[0].partition("CMD ")[2])
    assert check == ["overtone", "health"]  # which asks /health, over TLS too: see its own test
    assert check[1] in COMMANDS
    assert of("STOPSIGNAL") == ["SIGTERM"]


def test_its_variables_are_read():
    names = [word.partition("=")[0] for line in of("ENV") for word in line.replace("\\", " ").split() if "=" in word]
    assert {"OVERTONE_CACHE_DIR", "OVERTONE_HOST", "OVERTONE_PORT"} <= set(names)
    check_variables(typer.main.get_command(_program()), dict.fromkeys(names, "x"))


def test_torch_comes_before_the_code():
    builder = [f"{kind} {rest}" for kind, rest in INSTRUCTIONS]
    torch = next(number for number, line in enumerate(builder) if "${TORCH}" in line)
    code = next(number for number, line in enumerate(builder) if line.startswith("COPY"))
    assert torch < code


def test_what_is_copied_exists_and_is_not_ignored():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word.removeprefix("./") for line in of("COPY", "builder") for word in line.split()[:-1]}
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.skipif(os.environ.get("OVERTONE_TEST_INSTALL") != "1", reason="takes minutes: OVERTONE_TEST_INSTALL=1")
@pytest.mark.timeout(1800)
def test_the_install_steps_in_a_fresh_environment(tmp_path: Path):
    """The builders' COPY and RUN lines, unchanged, with folders under tmp_path; the health check of each target."""
    source, cache = tmp_path / "src", tmp_path / "cache"
    source.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}},
        **dict(argument.split("=", 1) for argument in of("ARG", "builder")),
        "PATH": f"{tmp_path}/opt/overtone/bin:{os.environ['PATH']}",
        "OVERTONE_CACHE_DIR": str(cache),
        "TORCH": os.environ.get("OVERTONE_TEST_TORCH", "torch~=2.13.0"),
    }
    for line in of("COPY", "builder"):
        for name in line.split()[:-1]:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, source / name)
    for stage in ("builder", "builder-gpu"):
        for line in of("RUN", stage):
            command = line.replace("/opt/overtone", f"{tmp_path}/opt/overtone")
            command = command.replace("python -m venv", f"{shlex.quote(sys.executable)} -m venv")
            subprocess.run(["sh", "-euc", command], cwd=source, env=environment, check=True)
        assert list(cache.glob("kernels-*.so"))
        away = source.rename(tmp_path / "away")  # the image has no sources either
        becomes_healthy(tmp_path, environment)
        away.rename(source)
    # The extra's own package; running it takes a GPU.
    subprocess.run(["python", "-c", "import triton"], cwd=tmp_path, env=environment, check=True)


def becomes_healthy(folder: Path, environment: dict[str, str]) -> None:
    """Start the image's command, wait for its health check, and end it as Docker does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment = {**environment, "OVERTONE_PORT": str(free.getsockname()[1])}
    with subprocess.Popen(["overtone", *json.loads(of("CMD", "runtime")[0])], cwd=folder, env=environment) as server:
        try:
            check = json.loads(of("HEALTHCHECK")[0].partition("CMD ")[2])
            deadline = time.monotonic() + 900
            while subprocess.run(check, env=environment, check=False, stderr=subprocess.DEVNULL).returncode:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(1)
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.terminate()
            assert server.wait(60) == 0
