"""`lambda: auto`: which λ is chosen, what is reported, and when it cannot choose."""

import json
from pathlib import Path

import pytest

from merge.checkpoint import open_checkpoint
from merge.recipe import load_recipe
from merge.run import MergeReport, merge_recipe
from merge.scale import MULTIPLES, ScalePoint, best_of
from tests.merge.general import add_template, ask_little
from tests.merge.tiny import save_fine_tune, save_tiny

USUAL = 0.3
"""λ of fr."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("inputs")
    base = save_tiny(root / "base")
    for seed, name in enumerate(("one", "two")):
        save_fine_tune(base, root / name, seed, size=0.2)
    add_template(base)
    lines = [{"task": task, "prompt": f"{task} {word}"} for task in ("one", "two") for word in ("cat", "dog", "fox")]
    (root / "prompts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return root


def recipe(inputs: Path, name: str, **changes: object) -> Path:
    document = {"name": "tiny", "base_model": "base", "models": [{"model": "one"}, {"model": "two"}], **changes}
    path = inputs / f"{name}.yml"
    path.write_text(json.dumps(document))
    return path


def allow(monkeypatch: pytest.MonkeyPatch, divergence: float) -> None:
    ask_little(monkeypatch)
    monkeypatch.setattr("merge.scale.MOST_DIVERGENCE", divergence)
    monkeypatch.setattr("merge.scale.MOST_PERPLEXITY", 1e9)


def merged(inputs: Path, out: Path, name: str = "free", **changes: object) -> MergeReport:
    return merge_recipe(recipe(inputs, name, **changes), out, progress=False, overwrite=True)


def test_without_prompts_the_largest_scale_within_the_limits(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, 1e9)
    every = merged(inputs, tmp_path / "every").scale
    assert every is not None
    assert [point.scale for point in every.curve] == pytest.approx([USUAL * multiple for multiple in MULTIPLES])
    assert every.scale == every.curve[-1].scale
    distances = [point.divergence for point in every.curve]
    assert distances == sorted(distances)
    allow(monkeypatch, (distances[2] + distances[3]) / 2)
    some = merged(inputs, tmp_path / "some").scale
    assert some is not None
    assert (some.scale, some.multiple) == (pytest.approx(USUAL * MULTIPLES[2]), MULTIPLES[2])
    assert len(some.curve) == 4, "the first scale beyond the limits ends the search"
    assert [point.loss for point in some.curve] == [None] * 4


def test_the_bundle_is_that_of_the_number(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, 1e9)
    report = merged(inputs, tmp_path / "auto", parameters={"lambda": "auto"})
    assert report.scale is not None
    merged(inputs, tmp_path / "number", "number", parameters={"lambda": report.scale.scale})
    first, second = (open_checkpoint(tmp_path / name / "backbone") for name in ("auto", "number"))
    assert all((first.tensor(name) == second.tensor(name)).all() for name in first.tensors)
    assert {file.name for file in (tmp_path / "auto").iterdir()} == {
        file.name for file in (tmp_path / "number").iterdir()
    }
    note = report.scale.summary()
    assert note.startswith("lambda: auto chose 0.6 (λ 0.0375: KL 0.0")
    assert note in report.notes
    assert note in (tmp_path / "auto" / "README.md").read_text()


def test_with_prompts_the_scale_that_replies_most_like_the_fine_tunes(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    allow(monkeypatch, 1e9)
    path = recipe(inputs, "prompts", calibration={"file": "prompts.jsonl", "answer_tokens": 4}, experts={"distill": 1})
    found = merge_recipe(path, tmp_path / "out").scale
    assert found is not None
    losses = [point.loss for point in found.curve if point.loss is not None]
    assert len(losses) == len(MULTIPLES)
    assert found.scale == found.curve[losses.index(min(losses))].scale
    told = capsys.readouterr().err
    assert "lambda: trying scales: 0 of 7" in told
    assert f"{found.curve[0]}\n" in told


def test_the_choice_among_scales() -> None:
    def curve(*points: tuple[float, float, float | None]) -> list[ScalePoint]:
        return [ScalePoint(0.1 * number, *point) for number, point in enumerate(points, 1)]

    best = best_of(curve((0.01, 1.0, 3.0), (0.05, 1.0, 2.0), (0.09, 1.02, 2.5), (0.2, 1.0, None)))
    assert (best.multiple, best.scale) == (MULTIPLES[1], pytest.approx(0.2))
    assert best_of(curve((0.01, 1.0, None), (0.01, 1.04, None))).multiple == MULTIPLES[0]
    none = best_of(curve((0.3, 1.0, None)))
    assert none.multiple == MULTIPLES[0]
    assert "chose 0.1, the smallest that was tried, although it changes the base's general abilities" in none.summary()


def test_a_base_without_general_abilities_gets_the_usual_scale(inputs: Path, tmp_path: Path) -> None:
    report = merged(inputs, tmp_path / "out")
    assert report.scale is None
    told = "lambda is the method's usual 0.3: auto cannot choose it, as the base has no chat template, or answers few"
    assert any(note.startswith(told) for note in report.notes)
    merged(inputs, tmp_path / "number", "number", parameters={"lambda": 0.3})
    one, two = ((tmp_path / name / "backbone" / "model.safetensors").read_bytes() for name in ("out", "number"))
    assert one == two


def test_the_choice_survives_a_resumed_merge(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, 1e9)
    path = recipe(inputs, "resumed")
    whole = merge_recipe(path, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("merge.run.model_card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            merge_recipe(path, tmp_path / "out", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("merge.run.choose_scale", lambda *_: pytest.fail("chosen again"))
        again = merge_recipe(path, tmp_path / "out", progress=False, resume=True)
    assert (again.scale, again.notes) == (whole.scale, whole.notes)


@pytest.mark.parametrize(
    ("changes", "chooses", "usual"),
    [
        ({}, True, 0.3),
        ({"parameters": {"lambda": "auto"}}, True, 0.3),
        ({"parameters": {"lambda": None}}, True, 0.3),
        ({"parameters": {"coefficients": "paper"}}, True, 1.0),
        ({"parameters": {"lambda": 0.3}}, False, None),
        ({"parameters": {"weight": 0.5}}, False, None),
        ({"parameters": {"weight": 0.5, "lambda": "auto"}}, True, 0.3),
        ({"parameters": {"lambda": [{"filter": "mlp", "value": 0.5}, "auto"]}}, True, 0.3),
        ({"parameters": {"lambda": [{"filter": "mlp", "value": 0.5}]}}, False, None),
        ({"models": [{"model": "one", "parameters": {"weight": 2.0}}]}, False, None),
        ({"merge_method": "tsv_m"}, True, 1.0),
        ({"merge_method": "linear"}, False, None),
        ({"merge_method": "base"}, False, None),
    ],
)
def test_which_recipes_leave_the_choice(inputs: Path, changes: dict, chooses: bool, usual: float | None) -> None:
    found = load_recipe(recipe(inputs, "which", **changes))
    assert found.chooses_scale is chooses
    if usual is not None:
        assert found.usual_scale == usual


def test_numbers_of_single_tensors_stay(inputs: Path) -> None:
    found = load_recipe(recipe(inputs, "by_tensor", parameters={"lambda": [{"filter": "mlp", "value": 0.5}, "auto"]}))
    assert not found.scales("model.layers.0.mlp.up_proj.weight")
    assert found.scales("model.norm.weight")
