from pathlib import Path

import pytest

from merge.recipe import Recipe, RecipeError, load_recipe

GOOD = """
base_model: base
merge_method: frank_wolfe
parameters:
  variant: hard
  steps: 4
  init: {method: ties, parameters: {density: 0.4}}
  objective: {tasks: [a], per_task: 3, replies: fine_tune}
models: [{model: a}, {model: b}]
calibration: {file: prompts.jsonl}
"""


def load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.yml"
    path.write_text(text)
    return load_recipe(path)


def test_its_parameters_are_read(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD).frank_wolfe()
    assert config is not None
    assert (config.variant, config.steps, config.objective.tasks) == ("hard", 4, ("a",))
    assert load(tmp_path, "base_model: b\nmodels: [{model: a}]\n").frank_wolfe() is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 4", "stepps: 4", "parameters: unknown key 'stepps'; did you mean 'steps'?"),
        ("per_task: 3", "per_tusk: 3", "parameters.objective: unknown key 'per_tusk'; did you mean 'per_task'?"),
        ("variant: hard", "variant: hrad", "parameters.variant: Input should be 'hard' or 'soft'"),
        ("{density: 0.4}", "{densty: 0.4}", "ties: densty: Extra inputs"),
        ("method: ties", "method: tis", "unknown merge_method 'tis'"),
        ("steps: 4", "steps: [{filter: mlp, value: 4}]", "parameters.steps: Input should be a valid integer"),
        ("{model: a}", "{model: a, parameters: {weight: 1}}", "models.0.parameters: frank_wolfe takes none"),
        ("calibration: {file: prompts.jsonl}", "", "frank_wolfe follows a loss: add a calibration block"),
    ],
)
def test_faults_are_worded(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert message in str(caught.value)
