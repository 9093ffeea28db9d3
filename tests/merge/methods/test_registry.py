import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from merge.methods import METHODS, ParameterError, PerTask, TaskVectors, find_method, method
from merge.methods.vectors import ONE
from tests.merge.methods.vectors import stream


def test_unknown_method_lists_the_known() -> None:
    with pytest.raises(
        ParameterError, match="unknown merge_method 'slerp'; there are base, breadcrumbs, breadcrumbs_ties, dare_linear"
    ):
        find_method("slerp")


def test_the_signature_is_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merge.methods.registry.METHODS", {})
    from merge.methods import registry

    @method("mine")
    def mine(name: str, base: Tensor, vectors: TaskVectors, *, weight: PerTask = ONE, power_: int = 2) -> Tensor:
        """Add powers."""
        return base + sum((weight[task] * vector**power_ for task, vector in vectors), torch.zeros(()))

    found = registry.METHODS["mine"]
    assert found.summary == "Add powers."
    own = {"a": found.task_parameters.model_validate({"weight": 10.0})}
    merge = found.bind(found.parameters.model_validate({"weight": 2.0, "power": 3}), own)
    vectors = stream({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
    assert float(merge("w", torch.tensor(0.5), vectors)) == 0.5 + 10 * 1 + 2 * 8
    with pytest.raises(ValidationError):
        found.task_parameters.model_validate({"power": 3})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fr", {"lamda": 1}),
        ("fr", {"lambda_": 1}),
        ("fr", {"r": -0.1}),
        ("fr", {"weight": float("nan")}),
        ("fr", {"coefficients": "most"}),
        ("ties", {"density": 0.0}),
        ("ties", {"density": 1.5}),
        ("iso_c", {"r": 0.7}),
        ("dare_linear", {"density": 0}),
        ("dare_ties", {"seed": -1}),
    ],
)
def test_parameters_outside_the_schema_are_refused(name: str, parameters: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        METHODS[name].parameters.model_validate(parameters)
