import pytest
from pydantic import ValidationError

from merge.experts import ExpertConfig


@pytest.mark.parametrize(
    ("settings", "calibrated", "expected"),
    [
        ({}, False, ("residual", "exact", None, None, 0)),
        ({}, True, ("activation", "least_squares", None, None, 60)),
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
    assert (found.selection, found.values, found.rescale, found.overlap, found.distill) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selection": "activation"}, "selection: activation needs prompts"),
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
        ({"selection": "residual", "overlap": "replace"}, "overlap says nothing about selection: residual"),
        ({"values": "exact", "rescale": 3.0}, "rescale needs values: rescaled"),
        ({"values": "least_squares", "overlap": "add"}, "say nothing about values: least_squares"),
        ({"storage": "fp8"}, "'bf16' or 'int8'"),
        ({"rescale": "guess"}, "rescale"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExpertConfig.model_validate(settings)
