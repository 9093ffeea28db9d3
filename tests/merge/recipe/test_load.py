from pathlib import Path

import pytest

from merge.recipe import Recipe, RecipeError, load_recipe

GOOD = """
name: demo
base_model: base
merge_method: fr
parameters: {lambda: 0.2, coefficients: align}
models:
  - model: tunes/roman
  - {name: dates, model: /abs/other, parameters: {weight: 0.5}}
out_dtype: bfloat16
experts: {density: 1e-2, selection: magnitude, rescale: 7}
calibration: {file: prompts.jsonl, per_task: 8}
router: {seed: 3}
"""


def load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.yml"
    path.write_text(text)
    return load_recipe(path)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    return message


def with_line(line: str, instead_of: str = "") -> str:
    lines = [old for old in GOOD.splitlines() if not instead_of or not old.startswith(instead_of)]
    return "\n".join([*lines, line])


def test_a_whole_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert recipe.base_model == tmp_path / "base"
    assert [entry.name for entry in recipe.models] == ["roman", "dates"]
    assert [entry.model for entry in recipe.models] == [tmp_path / "tunes/roman", Path("/abs/other")]
    assert recipe.calibration is not None
    assert recipe.calibration.file == tmp_path / "prompts.jsonl"
    assert recipe.experts.density == 0.01
    assert recipe.router.seed == 3
    assert recipe.dtype == "float32"


def test_the_shortest_recipe_has_data_free_experts(tmp_path: Path) -> None:
    recipe = load(tmp_path, "name: demo\nbase_model: base\nmodels: [{model: a}]\n")
    assert recipe.merge_method == "fr"
    experts = recipe.experts.resolved(calibrated=False)
    assert (experts.form, experts.budget, experts.selection, experts.distill) == ("auto", 0.01, "residual", 0)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("{density: 0.01}", ("activation", "least_squares", None, None)),
        ("{selection: magnitude}", ("magnitude", "exact", None, "replace")),
        ("{selection: magnitude, values: rescaled}", ("magnitude", "rescaled", "nearest", "add")),
        ("{rescale: paper}", ("activation", "rescaled", "paper", "add")),
        ("{values: exact}", ("activation", "exact", None, "replace")),
        ("{values: exact, overlap: add}", ("activation", "exact", None, "add")),
        ("{selection: magnitude, values: least_squares}", ("magnitude", "least_squares", None, None)),
    ],
)
def test_defaults_follow_from_what_is_given(tmp_path: Path, block: str, expected: tuple[object, ...]) -> None:
    experts = load(tmp_path, with_line(f"experts: {block}", "experts")).experts.resolved(calibrated=True)
    assert (experts.selection, experts.values, experts.rescale, experts.overlap) == expected
    fitted = experts.selection == "activation" or experts.values == "least_squares"
    assert experts.distill == (60 if fitted else 0)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (with_line("experts: {densty: 0.1}", "experts"), ["experts: unknown key 'densty'", "did you mean 'density'?"]),
        (with_line("expert: {}", "experts"), ["unknown key 'expert'", "did you mean 'experts'?"]),
        (with_line("calibration: {fil: x}", "calibration"), ["calibration: unknown key 'fil'", "calibration.file"]),
        (with_line("merge_method: tis", "merge_method"), ["merge_method: unknown 'tis'; did you mean 'ties'?"]),
        (with_line("merge_method: zzz", "merge_method"), ["unknown 'zzz'; there are ", "fr, frank_wolfe, iso_c"]),
        (
            with_line("parameters: {lamda: 1}", "parameters"),
            ["parameters: unknown key 'lamda'; did you mean 'lambda'?"],
        ),
        (with_line("parameters: {r: -1}", "parameters"), ["parameters.r: Input should be greater"]),
        (
            with_line("parameters: {lambda: [0.1, x]}", "parameters"),
            ["parameters.lambda: a list over layers holds numbers only"],
        ),
        (with_line("slices: []"), ["slices: not supported"]),
        (with_line("tokenizer: {source: union}"), ["tokenizer: not supported"]),
        (with_line("dtype: float8"), ["dtype: Input should be 'float32' or 'float64'"]),
        (with_line("experts: {density: 0}", "experts"), ["experts.density"]),
        (with_line("experts: {values: least_squares, rescale: 2}", "experts"), ["rescale and overlap have no effect"]),
        (with_line("experts: {values: exact, rescale: 2}", "experts"), ["rescale needs values: rescaled"]),
        (
            with_line("experts: {selection: activation}", "experts").replace("calibration", "#").replace("router", "#"),
            ["needs prompts"],
        ),
        (
            with_line("experts: {distill: 9}", "experts").replace("calibration", "#").replace("router", "#"),
            ["distill: 9 needs prompts"],
        ),
        (with_line("router: {folds: 1}", "router"), ["router.folds"]),
        (with_line("", "calibration"), ["router needs prompts"]),
        (with_line("name: auto", "name"), ["'auto' is not a valid name"]),
        (with_line("name: roman", "name"), ["a model has the bundle's name 'roman'"]),
        (GOOD.replace("name: dates", "name: roman"), ["two models are called 'roman'"]),
        (GOOD.replace("name: dates", "name: ../up"), ["models.1.name: '../up' is not a valid name"]),
        (GOOD.replace("name: dates", "name: backbone"), ["'backbone' is reserved"]),
        (GOOD.replace("{weight: 0.5}", "{wieght: 0.5}"), ["models.1.parameters: unknown key 'wieght'", "'weight'"]),
        (GOOD.replace("{weight: 0.5}", "{lambda: 0.5}"), ["models.1.parameters: unknown key 'lambda'"]),
        (with_line("name: other"), ["the key 'name' appears twice"]),
        ("models: [1", ["is not valid YAML"]),
        ("- a\n", ["must be a mapping with the keys base_model and models"]),
        ("name: x\nbase_model: b\nmodels: []\n", ["models: Tuple should have at least 1 item"]),
        ("!!python/object/apply:os.system ['true']", ["is not valid YAML"]),
    ],
)
def test_faults_are_worded(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = refused(tmp_path, text)
    assert all(part in message for part in parts), message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing\.yml: cannot be read: No such file"):
        load_recipe(tmp_path / "nothing.yml")


def test_parameters_reach_the_method(tmp_path: Path) -> None:
    import torch

    from merge.methods import TaskVectors

    text = with_line("merge_method: task_arithmetic", "merge_method").replace(
        "parameters: {lambda: 0.2, coefficients: align}", "parameters: {lambda: 2, weight: 3}"
    )
    merge = load(tmp_path, text).method()
    vectors = TaskVectors(["roman", "dates"], lambda task: torch.tensor(1.0 if task == "roman" else 10.0))
    assert float(merge("w", torch.tensor(0.0), vectors)) == 2 * (3 * 1 + 0.5 * 10)


def test_names_that_differ_in_case_alone(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text("base_model: b\nmodels: [{model: Task}, {model: x/task}]\n")
    with pytest.raises(RecipeError, match="'Task' and 'task' differ only in case"):
        load_recipe(path)
