"""The zoo's bundle, merged once and kept."""

import hashlib
from pathlib import Path

import merge
from benchmarks.zoo import models_dir
from kernels.compiled.build import cache_dir
from merge.bundle import BundleError, open_bundle
from merge.run import merge_recipe

RECIPE = Path(__file__).with_name("recipe.yml")


def zoo_bundle(cache: Path | None = None, progress: bool = True) -> Path:
    """The bundle's directory; merged first where this recipe, these weights and this merger have not made it yet.

    Raises:
        OSError: the cache directory cannot be written.
    """
    bundle = (cache or cache_dir()) / f"zoo-{_key()[:16]}"
    try:
        open_bundle(bundle)
    except BundleError:
        merge_recipe(RECIPE, bundle, overwrite=True, progress=progress, workers=None)
    return bundle


def _key() -> str:
    """Digest of all that the bundle depends on: the recipe, the zoo's files, the merger's source."""
    digest = hashlib.sha256()
    sources = sorted(Path(merge.__file__).parent.rglob("*.py"))
    zoo = [path for path in sorted(models_dir().rglob("*")) if path.suffix in {".safetensors", ".json"}]
    zoo.append(models_dir().parent / "prompts.jsonl")
    for path in (RECIPE, *zoo, *sources):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
