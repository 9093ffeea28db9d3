import pytest
from pydantic import ValidationError

from merge.frank_wolfe import FrankWolfeConfig


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": 0}, "greater than or equal to 1"),
        ({"speed": 1}, "Extra inputs"),
        ({"soft": {"vertices": 0}}, "at least 1"),
        ({"soft": {"vertices": "most"}}, "per_task"),
        ({"variant": "hard", "soft": {}}, "soft has no effect with variant: hard"),
        ({"variant": "soft", "step_rule": "classic"}, "step_rule has no effect with fitted coefficients"),
        ({"variant": "hard", "step_rule": "classic", "step_size": 0.5}, "step_size needs step_rule: scaled"),
        ({"init": "average"}, "base"),
        ({"init": {"method": "slerp"}}, "unknown merge_method 'slerp'"),
        ({"local_update": {"method": "ties", "parameters": {"density": 2}}}, "ties: density: .* less than or equal"),
        ({"local_update": {"method": "ties", "parameters": {"densty": 1}}}, "ties: densty: Extra inputs"),
        ({"objective": {"tasks": []}}, "at least 1"),
    ],
)
def test_what_is_refused(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FrankWolfeConfig.model_validate(parameters)


def test_what_is_accepted() -> None:
    FrankWolfeConfig()
    FrankWolfeConfig.model_validate({"variant": "hard", "step_rule": "scaled", "step_size": 0.5})
    FrankWolfeConfig.model_validate({"soft": {"steps": 0, "vertices": 3}, "step_rule": "classic"})
    chosen = {"method": "ties", "parameters": {"lambda": 0.5}}
    config = FrankWolfeConfig.model_validate({"init": chosen, "local_update": chosen})
    assert FrankWolfeConfig.model_validate(config.model_dump()) == config
