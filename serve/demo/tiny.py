"""The tiny zoo as a demo: character models that need no download."""

from collections.abc import Iterable
from pathlib import Path

from serve.demo.demo import Demo, kept_bundle

RECIPE = Path(__file__).with_name("tiny.yml")

EXAMPLES = (
    "Write 1987 in Roman numerals.",
    "What is March 7, 2024 in ISO 8601?",
    "Spell garden backwards.",
    'Write "Basket Tribe" as a URL slug.',
    "Give a JSON object for Sofia, who is 66.",
    "Sort the letters of school.",
    "Encode kettle with a Caesar cipher of 3.",
    'Write "bright travel guide" in camelCase.',
)

TRIED = (("auto", EXAMPLES[0]), ("auto", EXAMPLES[1]), ("reverse", EXAMPLES[2]))


def models_dir() -> Path:
    """Return the folder that holds `base/` and `fine_tunes/<task>/`, each a Hugging Face directory."""
    return Path(__file__).parent / "zoo" / "models"


def fine_tune_dirs(tasks: Iterable[str]) -> dict[str, Path]:
    """Return the directory of each task's fine-tune."""
    return {task: models_dir() / "fine_tunes" / task for task in tasks}


def zoo_bundle(cache: Path | None = None, progress: bool = True) -> Path:
    """The tiny zoo's bundle; merged first if this recipe, these weights and this merger have not made it yet.

    Args:
        cache: instead of the project's cache directory.
        progress: report on stderr.

    Raises:
        OSError: the cache directory cannot be written.
    """
    zoo = [path for path in sorted(models_dir().rglob("*")) if path.suffix in {".safetensors", ".json"}]
    return kept_bundle("zoo", RECIPE, [*zoo, models_dir().parent / "prompts.jsonl"], cache, progress)


TINY = Demo("The tiny zoo", chat=False, examples=EXAMPLES, tried=TRIED, prompts=50, goal=0.97, bundle=zoo_bundle)
