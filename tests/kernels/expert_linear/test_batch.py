import pytest
import torch

from kernels.expert_linear import ExpertBatch
from tests.kernels.experts import unfilled_plan


def test_tokens_are_grouped_by_slot() -> None:
    batch = ExpertBatch.from_slots([2, -1, 0, 2])
    assert [(group.slot, group.tokens.tolist(), group.gates.tolist()) for group in batch.groups] == [
        (0, [2], [1.0]),
        (2, [0, 3], [1.0, 1.0]),
    ]
    assert batch.group_slot.tolist() == [0, 2]
    assert batch.group_start.tolist() == [0, 1, 3]
    assert batch.group_token.tolist() == [2, 0, 3]
    assert (batch.tokens, batch.highest_slot, batch.uniform) == (4, 2, None)


def test_a_tokens_experts_come_in_the_order_of_its_row() -> None:
    batch = ExpertBatch.from_slots([[3, 1], [1, -1]], [[0.25, 0.75], [0.5, 9.0]])
    assert [(group.slot, group.tokens.tolist(), group.gates.tolist()) for group in batch.groups] == [
        (1, [1], [0.5]),
        (3, [0], [0.25]),
        (1, [0], [0.75]),
    ]


@pytest.mark.parametrize("slots", [[], [-1, -1], [[-1, -1]]])
def test_no_expert(slots: list[int]) -> None:
    batch = ExpertBatch.from_slots(slots)
    assert not batch.has_experts
    assert batch.groups == ()
    assert batch.uniform is None


@pytest.mark.parametrize(
    ("slots", "gates", "uniform"),
    [
        ([4, 4], None, 4),
        ([[4, -1], [4, -1]], None, 4),
        ([4, -1], None, None),
        ([4, 3], None, None),
        ([[4], [4]], [[1.0], [0.5]], None),
        ([[4, 4], [4, 4]], None, None),
    ],
)
def test_uniform(slots: list[int], gates: list[list[float]] | None, uniform: int | None) -> None:
    assert ExpertBatch.from_slots(slots, gates).uniform == uniform


@pytest.mark.parametrize(
    ("slots", "gates", "message"),
    [
        ([-2], None, "-1 .* or more, not -2"),
        ([1.0], None, "must be integers"),
        ([[[1]]], None, "must be integers"),
        ([[1, 2]], [[1.0]], "gates are"),
        ([[1]], [[float("nan")]], "finite"),
    ],
)
def test_from_slots_refuses(slots: list[int], gates: list[list[float]] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertBatch.from_slots(torch.tensor(slots), gates)


def test_a_plan_is_laid_into_another_of_maximal_shapes() -> None:
    plan = unfilled_plan(4, 3)
    assert plan.has_experts
    for slots, gates in (
        ([[3, 1], [1, -1], [-1, -1]], [[0.25, 0.75], [0.5, 9.0], [9.0, 9.0]]),
        ([[-1], [-1]], [[1.0], [1.0]]),
        ([[0, 1, 2], [2, 1, 0], [1, 2, 0], [5, 6, 7]], [[1.0, 2.0, 3.0]] * 4),
    ):
        want = ExpertBatch.from_slots(slots, gates)
        plan.fill(want)
        # `groups` is worked out once; what a kernel reads at each launch are the tensors.
        plan.__dict__.pop("groups", None)
        filled = [group for group in plan.groups if len(group.tokens)]
        assert plan.groups[: len(filled)] == tuple(filled)
        assert len(plan.groups) == 12
        for found, expected in zip(filled, want.groups, strict=True):
            assert found.slot == expected.slot
            assert torch.equal(found.tokens, expected.tokens)
            assert torch.equal(found.gates, expected.gates)
        tokens, width = want.slots.shape
        assert torch.equal(plan.slots[:tokens, :width], want.slots)
        assert bool((plan.slots[tokens:] == -1).all())
        assert bool((plan.slots[:, width:] == -1).all())


def test_a_plan_to_be_filled_has_maximal_shapes() -> None:
    plan = unfilled_plan(2, 2)
    with pytest.raises(ValueError, match=r"slots \[2, 2\] need 4 groups and pairs, not \[3, 5, 4, 4\]"):
        ExpertBatch.over(
            plan.slots, plan.gates, plan.group_slot[:3], plan.group_start, plan.group_token, plan.group_gate, plan.tiles
        )
    with pytest.raises(ValueError, match=r"slots \[2, 2\] need tiles of as many, not \[1, 2\]"):
        groups = plan.group_slot, plan.group_start, plan.group_token, plan.group_gate
        ExpertBatch.over(plan.slots, plan.gates, *groups, unfilled_plan(1, 2).tiles)
