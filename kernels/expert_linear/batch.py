"""Which tokens of a step carry which experts: worked out once a step, shared by all of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from kernels.compiled import BatchView
from kernels.expert_linear.tiles import NO_EXPERT, Tiles


@dataclass(frozen=True, eq=False)
class ExpertGroup:
    """The tokens that carry one slot in the same column of `slots`.

    Attributes:
        slot: which expert.
        tokens: `[n]` int64 positions in the batch, ascending.
        gates: `[n]` fp32.
    """

    slot: int
    tokens: Tensor
    gates: Tensor


@dataclass(frozen=True, eq=False)
class ExpertBatch:
    """Slots and gates of one step's tokens.

    The groups come column by column of `slots`, and inside a column by slot. Adding them in that order adds each
    token's own experts in the order of its row whatever the other tokens carry, so a token's result depends on its
    own row alone.

    Attributes:
        slots: `[T, m]` int32, -1 for none.
        gates: `[T, m]` fp32.
        group_slot: `[G]` int32, the groups' slots. Groups without tokens may only follow those with some.
        group_start: `[G + 1]` int32, the first index of each group's tokens in the two below.
        group_token: `[P]` int32, positions in the batch, ascending inside a group; what follows the last group's is
            ignored.
        group_gate: `[P]` fp32.
        highest_slot: the largest slot used, -1 if no token has an expert.
        uniform: the slot that every token carries alone and with gate 1, or None; then its residual may be patched
            into the weights instead.
        given_tiles: the plan as a GPU's kernels read it; None on a CPU: `tiles` makes it when it is needed.
    """

    slots: Tensor
    gates: Tensor
    group_slot: Tensor
    group_start: Tensor
    group_token: Tensor
    group_gate: Tensor
    highest_slot: int
    uniform: int | None
    given_tiles: Tiles | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the step, with and without experts."""
        return self.slots.shape[0]

    @property
    def has_experts(self) -> bool:
        """Whether any token carries an expert."""
        return self.highest_slot != NO_EXPERT

    @cached_property
    def groups(self) -> tuple[ExpertGroup, ...]:
        """The tokens that share an expert; empty if no token has one."""
        starts = self.group_start.tolist()
        sizes = [end - start for start, end in pairwise(starts)]
        tokens = torch.split(self.group_token[: starts[-1]].long(), sizes)
        gates = torch.split(self.group_gate[: starts[-1]], sizes)
        return tuple(map(ExpertGroup, self.group_slot.tolist(), tokens, gates))

    @cached_property
    def tiles(self) -> Tiles:
        """The plan as a GPU's kernels read it."""
        return self.given_tiles or Tiles.of(self.slots, self.gates, self.slots.device)

    @cached_property
    def view(self) -> BatchView:
        """The batch as the compiled kernels read it."""
        flat = (self.group_slot, self.group_start, self.group_token, self.group_gate, self.slots, self.gates)
        return BatchView(len(self.group_slot), self.slots.shape[1], *(part.data_ptr() for part in flat))

    @cached_property
    def view_address(self) -> int:
        """The address of `view`."""
        return addressof(self.view)

    @classmethod
    def from_slots(
        cls,
        slots: Tensor | Sequence[int] | Sequence[Sequence[int]],
        gates: Tensor | Sequence[Sequence[float]] | None = None,
        device: torch.device | str | None = None,
    ) -> ExpertBatch:
        """Plan a step.

        Args:
            slots: `[T]` or `[T, m]` integers, -1 for none. A tensor on a GPU is copied to the host, which waits for it.
            gates: `[T, m]` (or `[T]` with slots `[T]`) weights of the experts; None for 1.
            device: the device of the plan's tensors; None: the slots' own device, or the CPU.

        Raises:
            ValueError: a shape does not fit, a slot is below -1 or a gate is not finite.
        """
        if device is None:
            device = slots.device if isinstance(slots, Tensor) else "cpu"
        table = torch.as_tensor(slots).to(device="cpu")
        if table.dim() not in {1, 2} or (table.numel() and table.dtype.is_floating_point):
            raise ValueError(f"slots must be integers [T] or [T, m], not {table.dtype} {list(table.shape)}")
        weights = None if gates is None else torch.as_tensor(gates, dtype=torch.float32).to(device="cpu")
        if weights is not None and weights.shape != table.shape:
            raise ValueError(f"gates are {list(weights.shape)} but slots are {list(table.shape)}")
        if weights is not None and not bool(torch.isfinite(weights).all()):
            raise ValueError("gates must be finite")
        table = table.to(torch.int32)[:, None] if table.dim() == 1 else table.to(torch.int32)
        if table.numel() and int(table.min()) < NO_EXPERT:
            raise ValueError(f"slots must be -1 (no expert) or more, not {int(table.min())}")
        weights = torch.ones(table.shape) if weights is None else weights.reshape(table.shape)
        return _plan(table, weights, torch.device(device))

    @classmethod
    def over(
        cls,
        slots: Tensor,
        gates: Tensor,
        group_slot: Tensor,
        group_start: Tensor,
        group_token: Tensor,
        group_gate: Tensor,
        tiles: Tiles,
    ) -> ExpertBatch:
        """A decoding step's plan in tensors that are filled before each replay of the graph captured with it.

        Shapes are maxima, T * m groups and as many pairs, so that whatever experts the tokens of the next step carry,
        a kernel that was launched with these shapes does all of their work. Slots are not checked against the banks:
        the caller fills the plan with existing slots only. Its `highest_slot` says only that there may be experts.

        Args:
            slots: `[T, m]` int32.
            gates: `[T, m]` fp32.
            group_slot: `[T * m]` int32.
            group_start: `[T * m + 1]` int32.
            group_token: `[T * m]` int32.
            group_gate: `[T * m]` fp32.
            tiles: room for m columns of T tokens.

        Raises:
            ValueError: a shape is below its maximum.
        """
        pairs = slots.numel()
        sizes = [len(part) for part in (group_slot, group_start, group_token, group_gate)]
        if gates.shape != slots.shape or sizes != [pairs, pairs + 1, pairs, pairs]:
            raise ValueError(f"slots {list(slots.shape)} need {pairs} groups and pairs, not {sizes}")
        if tiles.token.shape != slots.T.shape:
            raise ValueError(f"slots {list(slots.shape)} need tiles of as many, not {list(tiles.token.T.shape)}")
        return cls(slots, gates, group_slot, group_start, group_token, group_gate, 0, None, tiles)

    def fill(self, plan: ExpertBatch) -> None:
        """Lay a plan into the tensors of this one, which `over` made; tokens that it does not have get no expert.

        Args:
            plan: of no more tokens, and no more experts a token; its tensors on the same device.
        """
        tokens, width = plan.slots.shape
        groups, pairs = len(plan.group_slot), len(plan.group_token)
        self.slots.fill_(NO_EXPERT)
        self.slots[:tokens, :width] = plan.slots
        self.gates[:tokens, :width] = plan.gates
        self.group_slot[:groups] = plan.group_slot
        self.group_start[: groups + 1] = plan.group_start
        self.group_start[groups + 1 :] = pairs
        self.group_token[:pairs] = plan.group_token
        self.group_gate[:pairs] = plan.group_gate
        self.tiles.fill(plan.tiles)


def _plan(slots: Tensor, gates: Tensor, device: torch.device) -> ExpertBatch:
    members: dict[tuple[int, int], list[int]] = {}
    for token, row in enumerate(slots.tolist()):
        for column, slot in enumerate(row):
            if slot != NO_EXPERT:
                members.setdefault((column, slot), []).append(token)
    order = sorted(members)
    sizes = [len(members[key]) for key in order]
    group_token = torch.tensor([token for key in order for token in members[key]], dtype=torch.int32)
    column_of = torch.tensor([key[0] for key in order for _ in members[key]], dtype=torch.int64)
    group_gate = gates[group_token.long(), column_of]
    starts = [0, *accumulate(sizes)]
    one_expert = len(order) == 1 and sizes[0] == slots.shape[0] and bool((group_gate == 1).all())
    return ExpertBatch(
        slots=slots.contiguous().to(device),
        gates=gates.contiguous().to(device),
        group_slot=torch.tensor([slot for _, slot in order], dtype=torch.int32, device=device),
        group_start=torch.tensor(starts, dtype=torch.int32, device=device),
        group_token=group_token.to(device),
        group_gate=group_gate.to(device),
        highest_slot=max((slot for _, slot in order), default=NO_EXPERT),
        uniform=order[0][1] if one_expert else None,
        given_tiles=None if device.type == "cpu" else Tiles.of(slots, gates, device),
    )
