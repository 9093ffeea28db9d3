"""How long a machine takes for a step and for an expert: measured here, or given by the user."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ENTRY_BYTES = {"int8": 3, "bf16": 4}


@dataclass(frozen=True)
class Card:
    """One replica's speeds.

    A step takes `base_ms + sequence_ms · sequences + expert_ms · distinct experts + prompt_ms · prompt tokens`, and
    `first_expert_ms` more if any sequence has an expert.

    Attributes:
        base_ms: reading the weights once, and what every step costs.
        sequence_ms: each sequence in the batch.
        first_expert_ms: a batch with experts instead of none.
        expert_ms: each distinct expert in the batch.
        prompt_ms: each prompt token.
        expert_bytes: of one expert on the device.
        load_bytes_per_s: from host memory to a slot.
        dollars_per_hour: of one replica; None: costs are given in replica-seconds only.
    """

    base_ms: float
    sequence_ms: float
    first_expert_ms: float
    expert_ms: float
    prompt_ms: float
    expert_bytes: float
    load_bytes_per_s: float
    dollars_per_hour: float | None = None

    def step_seconds(self, sequences: int, experts: int, prompt_tokens: int) -> float:
        """Duration of one step."""
        milliseconds = self.base_ms + self.sequence_ms * sequences + self.prompt_ms * prompt_tokens
        if experts:
            milliseconds += self.first_expert_ms + self.expert_ms * experts
        return milliseconds / 1e3

    def load_seconds(self) -> float:
        """Duration of bringing one expert into a slot."""
        return self.expert_bytes / self.load_bytes_per_s


def card_of_decode(report: Mapping[str, Any], load_bytes_per_s: float, dollars_per_hour: float | None = None) -> Card:
    """The card that a `python -m benchmarks.decode --json` document describes.

    Its five cases give the four coefficients of a step; an entry has 2 bytes of index, and 1 or 2 of value.

    Raises:
        ValueError: the document has none of the cases that are needed.
    """
    try:
        steps = {case: found["median"] for case, found in report["steps_ms"]["overtone"].items()}
        one, eight = steps["backbone/1"], steps["backbone/8"]
        single, mixed = steps["one_expert/8"], steps["distinct8/8"]
        prefill = max(report["prefill_tokens_per_s"]["overtone"].values())
        expert_bytes = _ENTRY_BYTES[report["storage"]] * report["density"] * report["parameters"]
    except KeyError as error:
        raise ValueError(
            f"the decode report has no {error}; it is made by python -m benchmarks.decode --json"
        ) from error
    sequence = max(eight - one, 0.0) / 7
    expert = max(mixed - single, 0.0) / 7
    return Card(
        base_ms=one - sequence,
        sequence_ms=sequence,
        first_expert_ms=max(single - eight - expert, 0.0),
        expert_ms=expert,
        prompt_ms=1e3 / prefill,
        expert_bytes=expert_bytes,
        load_bytes_per_s=load_bytes_per_s,
        dollars_per_hour=dollars_per_hour,
    )
