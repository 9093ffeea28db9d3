"""Backbones of the real zoo's fine-tunes in every storage."""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.zoo.real.bench import Bench
from merge.backbone import write_backbone
from merge.check.general import plain_text
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.methods import find_method
from merge.quantised_backbone import fitted_to_inputs, write_quantised

PLAIN = "bf16"


@dataclass(frozen=True)
class Rounded:
    """A backbone in few bits beside the same one in bfloat16.

    Attributes:
        kind: `lora` or `full`, of the fine-tunes.
        backbone: `base` or `linear`.
        storage: `int8` or `int4`.
        prompts: whether 4 bits were fitted to what the layers read on the tasks' prompts and the fine-tunes' replies.
        perplexity_ratio: on plain text.
        divergence: mean KL on the unrounded backbone's replies to general questions, nats a token.
    """

    kind: str
    backbone: str
    storage: str
    prompts: bool
    perplexity_ratio: float
    divergence: float


class Backbones:
    """Backbones in every storage, in directories that are removed with the block."""

    def __init__(self, stack: ExitStack, bench: Bench, tunes: Mapping[str, Checkpoint]) -> None:
        """Take what they are made of."""
        self._stack, self._bench, self._tunes = stack, bench, tunes
        self._made: dict[tuple[str, str, bool], Checkpoint] = {}

    def __call__(self, name: str, storage: str = PLAIN, prompts: bool = False) -> Checkpoint:
        """The backbone `base` or `linear` in a storage, as a recipe with or without prompts has it."""
        key = (name, storage, prompts and storage == "int4")
        if key not in self._made:
            self._made[key] = self._make(*key)
        return self._made[key]

    def _make(self, name: str, storage: str, prompts: bool) -> Checkpoint:
        if storage == PLAIN and name == "base":
            return self._bench.base
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        if storage == PLAIN:
            self._merge(directory)
        else:
            floats = self.floats(name)
            fitted = fitted_to_inputs(floats, storage, self._read()) if prompts else None
            write_quantised(directory, floats, storage, torch.bfloat16, fitted=fitted)
        return open_checkpoint(directory)

    def _read(self) -> list[list[int]]:
        bench, found = self._bench, list(plain_text(self._bench.base))
        for task, fine_tune in self._tunes.items():
            answered = zip(bench.prompt_tokens(task), bench.replies(task, fine_tune), strict=True)
            found += [[*prompt, *reply] for prompt, reply in answered]
        return found

    def floats(self, name: str) -> Checkpoint:
        """A backbone as it was merged, in float32."""
        if name == "base":
            return self._bench.base
        if (name, "", False) not in self._made:
            directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            self._merge(directory, torch.float32)
            self._made[name, "", False] = open_checkpoint(directory)
        return self._made[name, "", False]

    def _merge(self, directory: Path, dtype: torch.dtype | None = None) -> None:
        method = find_method("linear")
        bound = method.bind(method.parameters(), {})
        write_backbone(directory, self._bench.base, self._tunes, bound, out_dtype=dtype)
