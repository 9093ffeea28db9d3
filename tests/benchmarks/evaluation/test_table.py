import pytest

from benchmarks.evaluation import Evaluation, TaskScores

RESULT = Evaluation(
    tasks={"a": TaskScores(1.0, 0.0, 0.9, 0.8), "longer": TaskScores(0.5, 0.25, 0.5, 0.4)},
    prompts_per_task=20,
    router_accuracy=0.975,
    expert_density=0.0123456,
    expert_bytes_fraction=0.0246,
)


def test_the_average_is_over_tasks() -> None:
    average = RESULT.average
    assert (average.fine_tune, average.backbone, average.expert) == (0.75, 0.125, pytest.approx(0.7))
    assert average.routed == pytest.approx(0.6)


def test_the_json_document() -> None:
    assert RESULT.as_json() == {
        "tasks": {
            "a": {"fine_tune": 1.0, "backbone": 0.0, "expert": 0.9, "routed": 0.8},
            "longer": {"fine_tune": 0.5, "backbone": 0.25, "expert": 0.5, "routed": 0.4},
        },
        "average": {"fine_tune": 0.75, "backbone": 0.125, "expert": 0.7, "routed": 0.6},
        "prompts_per_task": 20,
        "router_accuracy": 0.975,
        "expert_density": 0.0123,
        "expert_bytes_fraction": 0.0246,
    }


def test_the_text_lines_up() -> None:
    lines = RESULT.as_text().splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[2].split() == ["longer", "0.500", "0.250", "0.500", "0.400"]
    assert "20 unseen prompts" in lines[4]
