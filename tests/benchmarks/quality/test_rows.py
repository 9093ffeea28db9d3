from benchmarks.quality.plans import PLANS
from benchmarks.quality.rows import ROWS, frank_wolfe_config
from merge.methods import METHODS


def test_every_row_is_a_method_with_parameters_it_takes() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        if row.method == "frank_wolfe":
            assert frank_wolfe_config(row.parameters["variant"], ("x*",), frozen=True).exclude == ("x*",)
        elif row.method is not None:
            parameters = {**row.parameters, **({"exclude": ("x*",)} if row.spatial else {})}
            METHODS[row.method].parameters.model_validate(parameters)


def test_plans_name_rows_that_are_there() -> None:
    names = {row.name for row in ROWS}
    for plan in PLANS.values():
        assert set(plan.calibrated_rows) <= names
        assert {name for name, _ in plan.extra} <= names
        quick = plan.shortened(quick=True, seeds=None)
        assert (quick.seeds, len(quick.rows), quick.curves) == (1, 2, False)
    assert PLANS["text"].shortened(quick=False, seeds=2).seeds == 2
