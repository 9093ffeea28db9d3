"""One step on the model: from planned chunks to logits."""

from bisect import bisect_right
from collections.abc import Sequence as Rows
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from kernels.attention import AttentionBatch
from kernels.expert_linear import ExpertBatch
from serve.engine.capture import CudaCapture
from serve.engine.graphs import DecodeGraphs, GraphLimits
from serve.engine.mixes import Mix, mix_of, slots_and_gates
from serve.engine.patching import Patching
from serve.engine.records import StepMode
from serve.engine.scheduler import Chunk
from serve.model import Decoder, ForwardBatch, KvCache


class Runner:
    """Builds the flattened batch of a step, once for all layers, and runs the decoder on it."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KvCache,
        block_size: int,
        patching: Patching,
        max_num_seqs: int = 64,
        max_model_len: int = 2048,
    ) -> None:
        self._decoder, self._cache, self._block_size, self._patching = decoder, cache, block_size, patching
        self._graphs: DecodeGraphs | None = None
        if cache.with_spare is not None:
            capture = CudaCapture(decoder.device)
            limits = GraphLimits.of(decoder, block_size, max_model_len)
            self._graphs = DecodeGraphs(decoder, cache.with_spare, block_size, capture, max_num_seqs, limits)
        self._planned: tuple[tuple[Mix, ...], tuple[int, ...]] | None = None
        self._plans: tuple[ExpertBatch, ExpertBatch] | None = None

    def warm_up(self, experts: bool) -> None:
        """Capture what decoding needs, if steps are captured; with the expert of a token if there are any."""
        if self._graphs is not None:
            self._graphs.capture_all(int(experts))

    def run(self, chunks: Rows[Chunk], rows: Rows[int]) -> tuple[Tensor, StepMode]:
        """Compute the chunks' tokens, write their keys and values, and return logits [R, vocab] of some of the tokens.

        Args:
            chunks: what to compute.
            rows: numbers of the wanted tokens in the flattened batch, ascending.

        Returns:
            The logits, which the next step may overwrite, and how they were computed.
        """
        patched = self._patching.settle(chunks)
        pooled = any(chunk.sequence.request.pooling for chunk in chunks)
        carried = any(chunk.sequence.experts for chunk in chunks)
        mode: StepMode = "patched" if patched else "fused" if carried else "plain"
        if self._graphs is not None and not pooled and (found := self._graphs.run(chunks, patched)) is not None:
            return self._some(found, rows, len(chunks)), mode
        decoding = [number for number, chunk in enumerate(chunks) if chunk.count == 1]
        if self._graphs is not None and not pooled and 0 < len(decoding) < len(chunks):
            # What decodes is replayed whatever prompts come beside it, so that these do not choose how it is computed.
            found = self._graphs.run([chunks[number] for number in decoding], patched)
            if found is not None:
                return self._beside(found, chunks, rows, patched), mode
        return self._eager(chunks, rows, patched, pooled), mode

    @property
    def follows(self) -> bool:
        """Whether steps may be launched behind others. What is patched is settled by the host, step for step."""
        return self._graphs is not None and not self._patching.active

    def follow(self, chunks: Rows[Chunk], drawn: Tensor) -> Tensor | None:
        """Launch the decoding step after one that is still being computed.

        Args:
            chunks: the tokens that it draws, each `ahead`.
            drawn: [chunks] int64 on the device, these tokens. Below 0: none that anything may come of.

        Returns:
            Logits [chunks, vocab], which the next step may overwrite; None if the step has to wait.
        """
        return None if self._graphs is None else self._graphs.follow(chunks, drawn)

    def _eager(self, chunks: Rows[Chunk], rows: Rows[int], patched: bool, pooled: bool) -> Tensor:
        experts, head_experts = (None, None) if patched else self._experts(chunks, rows)
        batch = self._batch(chunks, experts)
        with torch.inference_mode():
            hidden = self._decoder.forward(batch, self._cache)
            if pooled:
                self._pool(chunks, self._decoder.norm(hidden, experts))
            if not rows:
                return hidden.new_empty(0, self._decoder.config.vocab_size)
            wanted = hidden[torch.tensor(rows, dtype=torch.int64, device=hidden.device)]
            return self._decoder.logits(wanted, head_experts)

    def _beside(self, replayed: Tensor, chunks: Rows[Chunk], rows: Rows[int], patched: bool) -> Tensor:
        """Compute the chunks of several tokens eagerly, and put their logits between those that were replayed."""
        prompts = [chunk for chunk in chunks if chunk.count != 1]
        starts = [0, *accumulate(chunk.count for chunk in chunks)]
        # Where each chunk begins among those that were replayed, or among the prompts' tokens.
        own_starts: list[int] = []
        decoded = computed = 0
        for chunk in chunks:
            own_starts.append(decoded if chunk.count == 1 else computed)
            decoded, computed = decoded + (chunk.count == 1), computed + (chunk.count if chunk.count != 1 else 0)
        of_replayed: list[tuple[int, int]] = []
        of_prompts: list[tuple[int, int]] = []
        for place, row in enumerate(rows):
            number = bisect_right(starts, row) - 1
            kind = of_replayed if chunks[number].count == 1 else of_prompts
            kind.append((place, own_starts[number] + row - starts[number]))
        logits = self._eager(prompts, [row for _, row in of_prompts], patched, pooled=False)
        kept = self._some(replayed, [row for _, row in of_replayed], decoded)
        order = torch.tensor([place for place, _ in of_replayed + of_prompts], dtype=torch.int64).to(kept.device)
        out = kept.new_empty(len(rows), kept.shape[1])
        out[order] = torch.cat([kept, logits])
        return out

    @staticmethod
    def _some(logits: Tensor, rows: Rows[int], count: int) -> Tensor:
        return logits if len(rows) == count else logits[torch.tensor(rows, dtype=torch.int64).to(logits.device)]

    @staticmethod
    def _pool(chunks: Rows[Chunk], hidden: Tensor) -> None:
        """Add the hidden states [T, hidden], after the final norm, to the sums of the sequences that want them."""
        first = 0
        for chunk in chunks:
            sequence, request = chunk.sequence, chunk.sequence.request
            # Tokens that are computed again after a preemption are already in the sum.
            start = max(sequence.computed, sequence.pooled_tokens)
            end = min(sequence.computed + chunk.count, len(request.prompt))
            if request.pooling == "last":
                start = max(start, len(request.prompt) - 1)
            if request.pooling and start < end:
                rows = hidden[first + start - sequence.computed : first + end - sequence.computed]
                found = rows.float().sum(0).cpu()
                sequence.pooled = found if sequence.pooled is None else sequence.pooled + found
            sequence.pooled_tokens = max(sequence.pooled_tokens, end)
            first += chunk.count

    def _batch(self, chunks: Rows[Chunk], experts: ExpertBatch | None) -> ForwardBatch:
        size, device = self._block_size, self._decoder.device
        counts = [chunk.count for chunk in chunks]
        starts = [chunk.sequence.computed for chunk in chunks]
        tables = np.zeros((len(chunks), max(len(chunk.sequence.blocks) for chunk in chunks)), dtype=np.int32)
        tokens: list[int] = []
        for row, chunk in enumerate(chunks):
            sequence = chunk.sequence
            tables[row, : len(sequence.blocks)] = sequence.blocks
            tokens += sequence.tokens[sequence.computed : sequence.computed + chunk.count]
        owner = np.repeat(np.arange(len(chunks)), counts)
        offset = np.arange(len(tokens)) - np.repeat(np.cumsum(counts) - counts, counts)
        positions = np.repeat(starts, counts) + offset
        places = tables[owner, positions // size].astype(np.int64) * size + positions % size
        block_tables = torch.from_numpy(tables).to(device)
        contexts = [start + count for start, count in zip(starts, counts, strict=True)]
        return ForwardBatch(
            tokens=torch.tensor(tokens, dtype=torch.int64).to(device),
            positions=torch.from_numpy(positions).to(device),
            slot_mapping=torch.from_numpy(places).to(device),
            attention={
                window: AttentionBatch.build(block_tables, contexts, counts, size, window)
                for window in self._decoder.windows
            },
            experts=experts,
        )

    def _experts(self, chunks: Rows[Chunk], rows: Rows[int]) -> tuple[ExpertBatch | None, ExpertBatch | None]:
        """Plans of the experts for all tokens and for the wanted rows; None if no token has an expert."""
        if not any(chunk.sequence.experts for chunk in chunks):
            return None, None
        planned = tuple(map(mix_of, chunks)), tuple(rows)
        # While the same sequences decode, step after step has the same plans.
        if self._plans is None or planned != self._planned:
            self._plans, self._planned = self._plan(*planned), planned
        return self._plans

    def _plan(self, mixes: tuple[Mix, ...], rows: tuple[int, ...]) -> tuple[ExpertBatch, ExpertBatch]:
        slots, gates = slots_and_gates(mixes)
        owner = np.repeat(np.arange(len(mixes)), [count for count, _, _ in mixes])

        def plan(owners: np.typing.NDArray[np.int64]) -> ExpertBatch:
            return ExpertBatch.from_slots(
                torch.from_numpy(slots[owners]), torch.from_numpy(gates[owners]), self._decoder.device
            )

        every, wanted = plan(owner), owner[list(rows)]
        return every, every if len(wanted) == len(owner) else plan(wanted)
