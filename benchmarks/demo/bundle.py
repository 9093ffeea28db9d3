"""Bundles that are merged once and kept."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import merge
from kernels.compiled.build import cache_dir
from merge.bundle import BundleError, open_bundle
from merge.run import merge_recipe


def kept_bundle(
    name: str, recipe: Path, inputs: Sequence[Path], cache: Path | None = None, progress: bool = True
) -> Path:
    """The bundle of a recipe; merged first where this recipe, these inputs and this merger have not made it yet.

    Args:
        name: what the bundle's directory is called, before a digest.
        recipe: the YAML file.
        inputs: the files that the bundle depends on.
        cache: instead of the project's cache directory.
        progress: report on stderr.

    Raises:
        OSError: the cache directory cannot be written.
    """
    bundle = (cache or cache_dir()) / f"{name}-{_key(recipe, inputs)[:16]}"
    try:
        open_bundle(bundle)
    except BundleError:
        merge_recipe(recipe, bundle, overwrite=True, progress=progress, workers=None)
    return bundle


def _key(recipe: Path, inputs: Sequence[Path]) -> str:
    """Digest of all that the bundle depends on: the recipe, its inputs, the merger's source."""
    digest = hashlib.sha256()
    for path in (recipe, *inputs, *sorted(Path(merge.__file__).parent.rglob("*.py"))):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
