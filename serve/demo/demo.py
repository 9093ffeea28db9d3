"""What `overtone demo` needs to know about models: how they are merged, tried and measured."""

import hashlib
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import merge
from kernels.compiled.build import cache_dir
from merge.bundle import BundleError, open_bundle
from merge.run import merge_recipe


@dataclass(frozen=True)
class Demo:
    """Models to merge, serve and measure.

    Attributes:
        title: what they are called, to begin a sentence with.
        chat: whether they are asked with messages, or with plain prompts.
        examples: one request a task, for the page.
        tried: (model, prompt) of the commands that are shown.
        prompts: unseen ones a task that they are measured on.
        goal: share of the fine-tunes' average that the routed model has to reach.
        bundle: merges them if that was not done yet, and returns the bundle's directory.
    """

    title: str
    chat: bool
    examples: tuple[str, ...]
    tried: tuple[tuple[str, str], ...]
    prompts: int
    goal: float
    bundle: Callable[[], Path]

    def curl_lines(self, base_url: str) -> tuple[str, ...]:
        """Commands to paste into a shell."""
        return tuple(self._curl_line(base_url, model, prompt) for model, prompt in self.tried)

    def _curl_line(self, base_url: str, model: str, prompt: str) -> str:
        asked: dict[str, object] = {"prompt": prompt, "max_tokens": 48}
        if self.chat:
            asked = {"messages": [{"role": "user", "content": prompt}]}
        body = json.dumps({"model": model, **asked, "temperature": 0})
        route = "chat/completions" if self.chat else "completions"
        return f"curl -s {base_url}/v1/{route} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def kept_bundle(
    name: str, recipe: Path, inputs: Sequence[Path], cache: Path | None = None, progress: bool = True
) -> Path:
    """The bundle of a recipe; merged first if this recipe, these inputs and this merger have not made it yet.

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
