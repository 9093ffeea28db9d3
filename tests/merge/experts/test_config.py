import pytest
from pydantic import ValidationError

from merge.experts import ExpertConfig


@pytest.mark.parametrize(
    ("settings", "calibrated", "expected"),
    [
        ({"form": "sparse"}, False, ("residual", "exact", None, None, 0)),
        ({"form": "sparse"}, True, ("activation", "least_squares", None, None, 60)),
        ({"density": 0.01}, True, ("activation", "least_squares", None, None, 60)),
        ({"selection": "residual"}, False, ("residual", "exact", None, None, 0)),
        ({"selection": "residual", "values": "rescaled"}, False, ("residual", "rescaled", "nearest", None, 0)),
        ({"selection": "magnitude"}, False, ("magnitude", "exact", None, "replace", 0)),
        ({"rescale": "code"}, False, ("magnitude", "rescaled", "code", "add", 0)),
        ({"overlap": "add"}, False, ("magnitude", "exact", None, "add", 0)),
        ({"values": "rescaled"}, True, ("activation", "rescaled", "calibrated", "add", 60)),
        # Prompts for the router alone do not change how experts are cut.
        ({"selection": "magnitude", "values": "rescaled"}, True, ("magnitude", "rescaled", "nearest", "add", 0)),
        ({"selection": "residual"}, True, ("residual", "exact", None, None, 0)),
        ({"selection": "magnitude", "values": "least_squares"}, True, ("magnitude", "least_squares", None, None, 60)),
        ({"selection": "residual", "values": "exact"}, False, ("residual", "exact", None, None, 0)),
        ({"selection": "magnitude", "values": "exact"}, False, ("magnitude", "exact", None, "replace", 0)),
        ({"rescale": "calibrated"}, True, ("activation", "rescaled", "calibrated", "add", 60)),
    ],
)
def test_what_is_left_out_is_filled_in(settings: dict[str, object], calibrated: bool, expected: object) -> None:
    found = ExpertConfig.model_validate(settings).resolved(calibrated)
    assert found.form == "sparse"
    assert found.density == settings.get("density", 0.02)
    assert found.exclude == ("*embed_tokens*", "*lm_head*")
    assert (found.selection, found.values, found.rescale, found.overlap, found.distill) == expected


@pytest.mark.parametrize(
    ("settings", "calibrated", "expected"),
    [
        ({}, False, ("auto", 0.01, "residual", 0)),
        ({}, True, ("auto", 0.01, "activation", 30)),
        ({"budget": "0.5%"}, False, ("auto", 0.005, "residual", 0)),
        ({"budget": 0.02, "selection": "residual"}, True, ("auto", 0.02, "residual", 0)),
        ({"form": "low_rank", "distill": 0}, True, ("low_rank", 0.01, "activation", 0)),
        ({"form": "low_rank", "selection": "residual", "distill": 5}, True, ("low_rank", 0.01, "residual", 5)),
        ({"form": "both"}, False, ("both", 0.01, "residual", 0)),
        ({"form": "lora"}, True, ("lora", None, None, 0)),
    ],
)
def test_experts_of_a_budget_are_filled_in(settings: dict[str, object], calibrated: bool, expected: object) -> None:
    found = ExpertConfig.model_validate(settings).resolved(calibrated)
    assert (found.form, found.budget, found.selection, found.distill) == expected
    assert found.density is None
    assert found.exclude == ()
    assert found.needs_prompts == (calibrated and found.form != "lora" and settings.get("selection") != "residual") or (
        bool(settings.get("distill"))
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": "1%", "density": 0.02}, "budget and density both say how large an expert is"),
        ({"form": "low_rank", "density": 0.02}, "density is for form: sparse"),
        ({"budget": 0.01, "values": "exact"}, "values is for form: sparse"),
        ({"form": "both", "rescale": "code"}, "rescale is for form: sparse"),
        ({"form": "auto", "selection": "magnitude"}, "selection: magnitude is for form: sparse"),
        ({"form": "lora", "budget": 0.01}, "budget and distill have no effect with form: lora"),
        ({"budget": "lots"}, "budget"),
        ({"budget": "0%"}, "greater than 0"),
        ({"budget": "120%"}, "less than or equal to 1"),
        ({"form": "dense"}, "form"),
    ],
)
def test_forms_take_their_own_settings_only(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExpertConfig.model_validate(settings)


def test_a_sparse_expert_may_have_a_budget() -> None:
    found = ExpertConfig.model_validate({"form": "sparse", "budget": "1%"}).resolved(calibrated=False)
    assert (found.form, found.budget, found.density, found.selection) == ("sparse", 0.01, None, "residual")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selection": "activation"}, "selection: activation needs prompts"),
        ({"form": "low_rank", "selection": "activation"}, "selection: activation needs prompts"),
        ({"form": "low_rank", "distill": 5}, "distill: 5 needs prompts"),
        ({"values": "least_squares"}, "values: least_squares needs prompts"),
        ({"rescale": "calibrated"}, "rescale: calibrated needs prompts"),
        ({"distill": 5}, "distill: 5 needs prompts"),
    ],
)
def test_without_prompts_what_needs_them_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertConfig.model_validate(settings).resolved(calibrated=False)


def test_the_nearest_factor_is_of_entries_that_are_known_before_the_cut() -> None:
    config = ExpertConfig.model_validate({"selection": "activation", "rescale": "nearest"})
    with pytest.raises(ValueError, match="rescale: nearest needs selection: magnitude or residual"):
        config.resolved(calibrated=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selection": "residual", "overlap": "replace"}, "overlap has no effect with selection: residual"),
        ({"values": "exact", "rescale": 3.0}, "rescale needs values: rescaled"),
        ({"values": "least_squares", "overlap": "add"}, "have no effect with values: least_squares"),
        ({"storage": "fp8"}, "'bf16' or 'int8'"),
        ({"rescale": "guess"}, "rescale"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExpertConfig.model_validate(settings)
