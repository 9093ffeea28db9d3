"""Decoding steps as CUDA graphs: captured once for a bucket of shapes, replayed for every step that fits it."""

import logging
import sys
from collections import Counter
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention.varlen import attends
from serve.config.engine import EngineConfig
from serve.engine.capture import Capture, Graph
from serve.engine.scheduler import Chunk
from serve.engine.static_step import Bucket, StaticStep
from serve.model import Decoder, KvCache

_log = logging.getLogger("overtone")


@dataclass(frozen=True)
class GraphLimits:
    """What is captured. The numbers are chosen from what steps read, not measured: none of this has run on a card.

    Attributes:
        most_sequences: more sequences are left to eager steps, whose launches cost little beside their work.
        least_context: the smallest bucket of contexts; beyond it they double.
        most_experts: more experts of one token are left to eager steps.
        most_padding: tokens of keys that rounding up to a bucket may add to those the sequences have. Beyond, reading
            them takes longer than launching an eager step, which puts sequences of similar lengths together.
        most_graphs: more buckets than these are left to eager steps; nothing is captured twice.
        eager_steps: of a bucket before it is captured, so that shapes which only pass by are not.
    """

    most_sequences: int = 256
    least_context: int = 256
    most_experts: int = 4
    most_padding: int = 32_768
    most_graphs: int = 64
    eager_steps: int = 2

    @classmethod
    def of(cls, decoder: Decoder, block_size: int, max_model_len: int) -> "GraphLimits":
        """What is captured for a decoder.

        Attention that reads a sequence's own blocks and no more costs nothing for room in the tables: one bucket of
        contexts serves all.
        """
        dim = decoder.config.head_dim
        softcaps = {layer.math.softcap for layer in decoder.layers}
        if all(attends(decoder.device, decoder.dtype, dim, block_size, softcap) for softcap in softcaps):
            return cls(least_context=_power_of_two(max_model_len), most_padding=sys.maxsize)
        return cls()


def captures_steps(config: EngineConfig, device: torch.device) -> bool:
    """Whether steps are captured: on a GPU, unless the settings forbid it."""
    return device.type == "cuda" and torch.cuda.is_available() and not config.enforce_eager


def bucket_of(chunks: Rows[Chunk], patched: bool, limits: GraphLimits) -> Bucket | None:
    """The bucket of a step; None if it has to be computed eagerly.

    Args:
        chunks: what to compute.
        patched: whether the step's experts are in the weights.
        limits: what is captured.
    """
    if len(chunks) > limits.most_sequences or any(chunk.count != 1 for chunk in chunks):
        return None
    contexts = [chunk.position + 1 for chunk in chunks]
    experts = 0 if patched else max(len(chunk.sequence.experts) for chunk in chunks)
    bucket = Bucket(
        sequences=_power_of_two(len(chunks)),
        context=max(limits.least_context, _power_of_two(max(contexts))),
        experts=_power_of_two(experts) if experts else 0,
    )
    padding = bucket.sequences * bucket.context - sum(contexts)
    return None if experts > limits.most_experts or padding > limits.most_padding else bucket


class DecodeGraphs:
    """Captures steps when they come, and replays them.

    Capturing waits for the first steps of a bucket: of the hundreds of buckets that there can be a server meets a few,
    and should not start minutes later for the rest. A capture holds up its step for about two eager ones and what the
    driver takes to make a graph, and there are at most `most_graphs` of them in a server's life.

    A step that was patched is a plain one, for weights are patched in place. Whatever goes wrong, the step is computed
    eagerly, as are all later ones.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KvCache,
        block_size: int,
        capture: Capture,
        most_sequences: int,
        limits: GraphLimits | None = None,
    ) -> None:
        """Capture nothing yet.

        Args:
            decoder: the model.
            cache: with a spare block at its end, which no sequence is given.
            block_size: tokens in a block.
            capture: how.
            most_sequences: of a step.
            limits: what.
        """
        self._decoder, self._cache, self._block_size, self._capture = decoder, cache, block_size, capture
        self._limits = limits or GraphLimits()
        self._steps: dict[Bucket, tuple[StaticStep, Graph]] = {}
        self._eager: Counter[Bucket] = Counter()
        self._failed = False
        shape = _power_of_two(min(most_sequences, self._limits.most_sequences)), decoder.config.vocab_size
        # Outside the pool of the graphs, and one for all of them.
        self._logits = torch.empty(shape, dtype=decoder.dtype, device=decoder.device)

    def capture_all(self, most_experts: int) -> None:
        """Capture steps of every number of sequences, for contexts of the smallest bucket, before they come.

        Args:
            most_experts: of a token, 0 or 1.
        """
        sequences = len(self._logits)  # the largest first: the others find room in its memory
        while sequences:
            for experts in range(most_experts + 1):
                if not self._failed and len(self._steps) < self._limits.most_graphs:
                    self._try(Bucket(sequences, self._limits.least_context, experts), ())
            sequences //= 2

    def run(self, chunks: Rows[Chunk], patched: bool) -> Tensor | None:
        """Compute a step's tokens, and write their keys and values, if it is captured or due to be.

        Args:
            chunks: what to compute.
            patched: whether their experts are in the weights.

        Returns:
            Logits [chunks, vocab], overwritten by the next step; None if the step has to be computed eagerly.
        """
        bucket = None if self._failed else bucket_of(chunks, patched, self._limits)
        if bucket is None or (bucket not in self._steps and not self._due(bucket)):
            return None
        return self._logits[: len(chunks)] if self._try(bucket, chunks) else None

    def follow(self, chunks: Rows[Chunk], drawn: Tensor) -> Tensor | None:
        """Launch the step after one that is still being computed, if it is captured already.

        Args:
            chunks: the tokens that it draws.
            drawn: [chunks] int64 on the device, these tokens. Below 0: none that anything may come of.

        Returns:
            As `run`.
        """
        bucket = None if self._failed else bucket_of(chunks, False, self._limits)
        if bucket not in self._steps or bucket is None:
            return None
        return self._logits[: len(chunks)] if self._try(bucket, chunks, drawn) else None

    def _try(self, bucket: Bucket, chunks: Rows[Chunk], drawn: Tensor | None = None) -> bool:
        """Replay a step, captured first if it is not; if that fails nothing is captured any more."""
        try:
            with torch.inference_mode():
                self._replay(bucket, chunks, drawn)
        except Exception as error:
            _log.warning(
                "the step for %s could not be captured (%s: %s); decoding steps are no longer captured",
                bucket,
                type(error).__name__,
                error,
            )
            self._failed = True
            self._steps.clear()
            return False
        return True

    def _replay(self, bucket: Bucket, chunks: Rows[Chunk], drawn: Tensor | None) -> None:
        if bucket in self._steps:
            step, graph = self._steps[bucket]
            step.fill(chunks, drawn)
        else:
            logits = self._logits[: bucket.sequences]
            step = StaticStep(bucket, self._decoder, self._cache, self._block_size, logits)
            step.fill(chunks)
            graph = self._capture(step.compute)
            self._steps[bucket] = step, graph
        graph.replay()

    def _due(self, bucket: Bucket) -> bool:
        if len(self._steps) >= self._limits.most_graphs:
            return False
        self._eager[bucket] += 1
        return self._eager[bucket] > self._limits.eager_steps


def _power_of_two(number: int) -> int:
    """The next one from `number` on, which is at least 1."""
    return 1 << (number - 1).bit_length()
