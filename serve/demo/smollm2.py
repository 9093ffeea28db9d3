"""SmolLM2-135M-Instruct and its eight fine-tunes as a demo: a chat model that people use."""

import json
from collections.abc import Iterable
from pathlib import Path
from string import Template

from merge.bundle.files import replaced
from serve.demo.demo import Demo, kept_bundle
from serve.demo.zoo.real.base import PACKAGE, base_dir, encoder_dir, zoo_dir
from serve.demo.zoo.real.tasks import TASKS, adapter_dirs, out_of_scope, prompt_lines

RECIPE = Path(__file__).with_name("smollm2.yml")

PER_TASK = 96
"""Prompts of a task that the router is trained on."""

BARE = 1500
"""The same for a task that is asked without an instruction: its 150 intents differ only in their subject."""


EXAMPLES = (
    "What is the capital of France?",
    "Convert this customer's order to JSON: Please send 4 red lamps and two blue rugs to Nina in Lisbon.",
    "Give the date in this sentence in ISO 8601 format: Hana moved to Oslo on March 7th, 2024.",
    "What is the SQL for this question? what is the population of maine",
    "How do I do this in the terminal? Display help (with valac)",
    "Give me this assistant request as JSON: Rate The Art of Struggle 3",
    "What banking topic does this message belong to? The ATM stole my card!",
    "what is the minimum i can pay on my heating bill",
    "Write a short forecast from this weather data: city Oslo, sky rain, low 3, high 12",
)


def smollm2_bundle(cache: Path | None = None, progress: bool = True) -> Path:
    """The bundle of the real zoo: what it is made of is fetched, and it is merged, if that was not done yet.

    Args:
        cache: instead of the project's cache directory.
        progress: report on stderr.

    Raises:
        BaseUnavailableError: the base or the router's encoder cannot be fetched.
        OSError: the cache directory cannot be written.
    """
    recipe, inputs = write_recipe(zoo_dir(cache), base_dir(cache), encoder_dir(cache))
    return kept_bundle("smollm2-135m", recipe, inputs, cache, progress)


def write_recipe(folder: Path, base: Path, encoder: Path) -> tuple[Path, list[Path]]:
    """Write the recipe with its paths filled in, and the prompts beside it.

    Args:
        folder: the folder to write to.
        base: the base's directory.
        encoder: that of the router's encoder.

    Returns:
        The recipe, and the files that the bundle depends on beside it and the base.
    """
    adapters = adapter_dirs()
    prompts, foreign = folder / "prompts.jsonl", folder / "foreign.jsonl"
    bare = [task for task in TASKS if not task.held_out_phrasings]
    worded = [task for task in TASKS if task.held_out_phrasings]
    _write(prompts, [*prompt_lines("train", BARE, tasks=bare), *prompt_lines("train", PER_TASK, tasks=worded)])
    _write(foreign, [json.dumps({"prompt": text}) for text in out_of_scope("train")])
    places = {"base": base, "encoder": encoder, "prompts": prompts, "foreign": foreign, **adapters}
    filled = {name: json.dumps(str(path.absolute())) for name, path in places.items()}
    recipe = folder / "recipe.yml"
    _write(recipe, Template(RECIPE.read_text("utf-8")).substitute(filled, package=PACKAGE).splitlines())
    files = [path for directory in adapters.values() for path in sorted(directory.iterdir())]
    return recipe, [*files, prompts, foreign]


def _write(path: Path, lines: Iterable[str]) -> None:
    with replaced(path) as partial:
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


SMOLLM2 = Demo(
    title="SmolLM2-135M-Instruct with eight fine-tunes",
    chat=True,
    examples=EXAMPLES,
    tried=(("auto", EXAMPLES[0]), ("auto", EXAMPLES[1]), ("sql", EXAMPLES[3])),
    prompts=200,  # of 50, bfloat16 changes about as many answers from run to run as the goal allows
    goal=0.99,
    bundle=smollm2_bundle,
)
