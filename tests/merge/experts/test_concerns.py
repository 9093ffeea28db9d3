from dataclasses import replace

import pytest

from merge.experts import ExpertConfig, ExpertReport, concerns, foreseen

GOOD = ExpertReport("sql", nnz=5, bytes=20, density=0.01, share=0.02, divergence=(0.5, 0.01), prompts=40, empty=2)


def test_a_good_expert_gives_no_concern() -> None:
    assert concerns(GOOD) == []
    assert concerns(replace(GOOD, factor=2.0, divergence=None, prompts=0, empty=0)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 5.42}, "μ is 5.42: above 2 the entries that an expert keeps end farther from the fine-tune"),
        ({"divergence": (0.5, 0.5)}, "the backbone alone is as close to the fine-tune as with the expert"),
        ({"empty": 11}, "the fine-tune replied with nothing to 11 of 40 calibration prompts"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, object], message: str) -> None:
    (found,) = concerns(replace(GOOD, **changes))  # type: ignore[arg-type]
    assert message in found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rescale": "code"}, "experts.rescale: code gives a μ of about 5.7 at this density"),
        ({"rescale": "paper"}, "about 5.7, times about the number of models"),
        ({"rescale": 3.0}, "experts.rescale is 3: above 2"),
        ({"rescale": 2.0}, None),
        ({"rescale": "code", "density": 0.5}, None),
        ({}, None),
    ],
)
def test_a_large_factor_is_foreseen(settings: dict[str, object], message: str | None) -> None:
    found = foreseen(ExpertConfig.model_validate(settings).resolved(calibrated=False))
    assert [message in text for text in found] == ([] if message is None else [True])
