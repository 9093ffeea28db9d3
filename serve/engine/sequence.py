"""One request on its way through the engine."""

from torch import Tensor

from serve.engine.kv_blocks import cache_root, chain_digest
from serve.engine.request import FinishReason, Request, TokenOutput
from serve.engine.sampling_state import SamplingState
from serve.experts import ExpertVersion, Lease
from serve.experts.version import ExpertLoadError

Group = tuple[str, ...]
"""Content digests of the experts of a mix, in order."""


class Sequence:
    """A request's tokens, and what the engine holds for it.

    Attributes:
        request: what was asked.
        experts: (version, gate) of each expert, ordered by content so that equal mixes add up alike.
        versions: the experts without their gates.
        group: their contents. Sequences of one group share a line in the queue.
        sampling: what its next draw depends on.
        tokens: prompt and generated token ids.
        computed: how many of them have keys and values.
        cached: how many of those were found in the prefix cache when it was first admitted.
        blocks: KV blocks, in order.
        published: how many of them are in the prefix cache.
        lease: slots of its experts while it runs, or None.
        due: how many sequences may have left the queue before it is overdue.
        prompt_logprobs: of the prompt tokens computed so far, if requested.
        pooled: the sum of the hidden states that are pooled so far [hidden] float32, if requested.
        pooled_tokens: number of prompt tokens in that sum.
        finish_reason, error: why it ended, or None.
        expert_error: why one of its experts could not be loaded, or None.
        scheduled, first_token: `time.monotonic()` of its first step and first token.
    """

    def __init__(self, request: Request, experts: tuple[tuple[ExpertVersion, float], ...], seed: int) -> None:
        self.request = request
        self.experts = tuple(sorted(experts, key=lambda pair: pair[0].digest))
        self.versions = tuple(version for version, _ in self.experts)
        self.group: Group = tuple(version.digest for version in self.versions)
        self.sampling = SamplingState(request.params, request.prompt, seed, request.mask)
        self.tokens = list(request.prompt)
        self.computed = 0
        self.cached = 0
        self.blocks: list[int] = []
        self.published = 0
        self.lease: Lease | None = None
        self.due = 0
        self.prompt_logprobs: list[TokenOutput | None] = [None] * max(request.scored_from, 1)
        self.pooled: Tensor | None = None
        self.pooled_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self.expert_error: ExpertLoadError | None = None
        self.scheduled: float | None = None
        self.first_token: float | None = None
        self._keys = [cache_root((version.digest, gate) for version, gate in self.experts)]

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def remaining(self) -> int:
        """Tokens without keys and values; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def unscored(self) -> int | None:
        """The next tokens to compute that no log-probabilities are wanted of; None: of none at all."""
        if self.request.params.prompt_logprobs is None or self.computed >= len(self.request.prompt) - 1:
            return None
        return max(self.request.scored_from - 1 - self.computed, 0)

    @property
    def cacheable(self) -> int:
        """Tokens at the beginning that need not be computed if their keys and values are known."""
        if self.request.pooling == "mean":
            return 0
        if self.request.params.prompt_logprobs is None:
            return len(self.tokens) - 1  # the last token's logits are what the next token is drawn from
        return min(self.request.scored_from, len(self.tokens)) - 1

    @property
    def order(self) -> tuple[int, float]:
        """Sorts sequences by who is served first."""
        return self.request.priority, self.request.arrival

    @property
    def age(self) -> tuple[int, int]:
        """Sorts sequences by how long they have waited, within a priority."""
        return self.request.priority, self.due

    def key(self, block: int, block_size: int) -> bytes:
        """Prefix key of a full block."""
        for number in range(len(self._keys) - 1, block + 1):
            tokens = self.tokens[number * block_size : (number + 1) * block_size]
            self._keys.append(chain_digest(self._keys[-1], tokens))
        return self._keys[block + 1]
