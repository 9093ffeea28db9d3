"""The engine: requests in, steps, outputs out. Synchronous; one thread calls it."""

import logging
import time
from itertools import count

from torch import Tensor

from serve.config.engine import EngineConfig
from serve.engine.device import is_lost
from serve.engine.draws import Draws, follow, followers
from serve.engine.errors import InvalidRequest, PromptTooLong, UnknownExpert
from serve.engine.kv_blocks import BlockPool
from serve.engine.patching import Patching
from serve.engine.records import EngineObserver, EngineStats, RequestRecord, StepMode, StepRecord
from serve.engine.request import FinishReason, Output, Request, TokenOutput
from serve.engine.runner import Runner
from serve.engine.sampler import sample, token_outputs
from serve.engine.sampling_state import mix64
from serve.engine.scheduler import Chunk, Plan, Scheduler
from serve.engine.sequence import Sequence
from serve.experts import ExpertStore, ExpertVersion
from serve.model import Decoder, KvCache

_log = logging.getLogger("overtone")


class Engine:
    """Continuous batching over one decoder and its experts.

    Attributes:
        experts: the expert store; its `load` and `unload` may be called from any thread.
        max_model_len: longest sequence.
        idle: whether the last step found nothing to compute, because all requests wait for experts or there are none.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KvCache,
        experts: ExpertStore,
        patching: Patching,
        config: EngineConfig,
        max_model_len: int,
        observer: EngineObserver,
    ) -> None:
        self.experts, self.max_model_len = experts, max_model_len
        self._vocab, self._end_tokens = decoder.config.vocab_size, decoder.config.eos_token_ids
        self._pool = BlockPool(cache.keys[0].shape[0], config.enable_prefix_caching)
        self._cache_bytes = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
        self._weight_bytes = decoder.weight_bytes(), decoder.unquantised_bytes()
        self._scheduler = Scheduler(config, self._pool, experts)
        self._runner = Runner(decoder, cache, config.block_size, patching, config.max_num_seqs, max_model_len)
        self._observer, self._seed = observer, config.seed
        self._numbers = count()
        self._checked: tuple[int, ...] = ()
        self._launched: Draws | None = None
        self._sequences: dict[str, Sequence] = {}
        self.idle = True

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._sequences)

    @property
    def waiting_tokens(self) -> int:
        """Tokens of the requests that wait; may be called from any thread."""
        return self._scheduler.waiting.tokens

    def check(self, request: Request) -> tuple[tuple[ExpertVersion, float], ...]:
        """Whether a request can be served at all; may be called from any thread.

        Returns:
            The experts' versions with their gates, as registered now.

        Raises:
            UnknownExpert: an expert is not registered.
            PromptTooLong: the prompt leaves no room for a generated token.
            InvalidRequest: another field cannot be served (named).
        """
        prompt, params = request.prompt, request.params
        if not prompt:
            raise InvalidRequest("prompt is empty; it must hold at least one token", "prompt")
        if len(prompt) + min(params.max_tokens, 1) > self.max_model_len:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens; with a generated one it must fit {self.max_model_len}"
            )
        ranges = {} if params.rules is None else params.rules.ranges
        # The continuations of a prompt come one after another and share its tuple, which may be long.
        new = () if prompt is self._checked else prompt
        ending = {"stop_token_ids": params.stop_token_ids, "end_token_ids": params.ends(())}
        for name, tokens in (("prompt", new), *ending.items(), *ranges.items()):
            if tokens and not 0 <= min(tokens) <= max(tokens) < self._vocab:
                raise InvalidRequest(f"{name} has a token outside the vocabulary, 0 to {self._vocab - 1}", name)
        self._checked = prompt
        names = [name for name, _ in request.experts]
        if len(set(names)) < len(names):
            raise InvalidRequest(f"experts names one of {', '.join(names)} twice", "experts")
        versions = tuple((self._version(name), float(gate)) for name, gate in request.experts)
        if any(not abs(gate) < float("inf") for _, gate in versions):
            raise InvalidRequest("experts has a gate that is not finite", "experts")
        if len(versions) > self.experts.slots:
            message = f"experts mixes {len(versions)}; at most {self.experts.slots} can be resident at once"
            raise InvalidRequest(message, "experts")
        return versions

    def add(self, request: Request) -> None:
        """Let a request wait for its first step.

        Raises:
            EngineError: it cannot be served (see `check`), or its id is that of an unfinished one.
        """
        self.admit(request, self.check(request))

    def admit(self, request: Request, experts: tuple[tuple[ExpertVersion, float], ...]) -> None:
        """Let a checked request wait, with the versions that the check found."""
        if request.request_id in self._sequences:
            raise InvalidRequest(f"request_id {request.request_id!r} belongs to an unfinished request", "request_id")
        number, seed = next(self._numbers), request.params.seed
        sequence = Sequence(request, experts, mix64(mix64(self._seed) + number) if seed is None else seed)
        self._sequences[request.request_id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> Output | None:
        """End a request at once; its blocks and slots are free when this returns. None if it has ended already."""
        sequence = self._sequences.get(request_id)
        return None if sequence is None else self._end(sequence, "abort")

    def warm_up(self) -> None:
        """Compile and capture what steps of few tokens need, if steps are captured."""
        self._runner.warm_up(self.experts.slots > 0)

    def step(self) -> list[Output]:
        """Compute one batch. What fails in a step ends that step's requests, not the engine.

        Raises:
            RuntimeError: the device is lost, so that no later step could succeed.
        """
        started = time.monotonic()
        plan = self._scheduler.plan()
        outputs = [self._close(sequence, "error") for sequence in plan.failed]
        self.idle = not plan.chunks and not plan.preemptions
        if not plan.chunks:
            return outputs
        mode: StepMode = "plain"
        try:
            drawn, mode = self._compute(plan.chunks)
        except Exception as error:
            if is_lost(error):
                raise
            _log.exception("a step of %d requests failed", len(plan.chunks))
            message = f"the step failed: {type(error).__name__}: {error}"
            return outputs + [self._end(chunk.sequence, "error", message) for chunk in plan.chunks]
        for chunk in plan.chunks:
            self._scheduler.computed(chunk)
            if chunk.draws:
                outputs.append(self._advance(chunk.sequence, drawn.get(chunk.sequence)))
        if any(not chunk.sequence.request.warm_up for chunk in plan.chunks):
            self._observer.on_step(self._record(plan, mode, time.monotonic() - started))
        return outputs

    def stats(self) -> EngineStats:
        """The engine at this moment; may be called from any thread."""
        infos, contents, scheduler = self.experts.infos(), self.experts.contents, self._scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            waiting_tokens=scheduler.waiting.tokens,
            kv_blocks_used=self._pool.used,
            kv_blocks_total=self._pool.num_blocks,
            kv_cache_bytes=self._cache_bytes,
            expert_slots=self.experts.slots,
            expert_device_bytes=self.experts.device_bytes,
            expert_host_bytes=self.experts.host_bytes,
            experts_resident=tuple(info.version.name for info in infos if info.slot is not None),
            experts_on_host=tuple(info.version.name for info in infos if info.on_host),
            contents_resident=contents["device"],
            contents_on_host=contents["host"],
            weight_bytes=self._weight_bytes[0],
            unquantised_weight_bytes=self._weight_bytes[1],
        )

    def _compute(self, chunks: list[Chunk]) -> tuple[dict[Sequence, TokenOutput], StepMode]:
        """Run the model; draw the next tokens and note the prompt's log-probabilities.

        On a GPU the step after this one is launched before the host waits for these tokens, if it is known.
        """
        launched, self._launched = self._launched, None
        covered = [] if launched is None else [chunk for chunk in chunks if launched.covers(chunk)]
        going = followers(chunks, self._scheduler, self.max_model_len) if self._runner.follows else []
        done = set(covered)
        rest = [chunk for chunk in chunks if chunk not in done] if done else chunks
        parts = [(launched, covered)] if launched is not None and covered else []
        drawn: dict[Sequence, TokenOutput] = {}
        mode: StepMode = "fused" if any(chunk.sequence.experts for chunk in chunks) else "plain"
        if rest:
            logits, drawing, own_mode = self._run(rest)
            mode = mode if covered else own_mode
            if going and drawing:
                parts.append((Draws.begin(logits, drawing), drawing))
            elif drawing:
                states = [chunk.sequence.sampling for chunk in drawing]
                found = sample(logits, states, self._end_tokens)
                drawn = {chunk.sequence: token for chunk, token in zip(drawing, found, strict=True)}
        following = follow(self._runner, going, [draws for draws, _ in parts]) if going else None
        for draws, theirs in parts:
            told, undecided = draws.read([chunk.sequence for chunk in theirs])
            drawn |= told
            following = following if following is None else following.without(undecided)
        self._launched = following
        return drawn, mode

    def _run(self, chunks: list[Chunk]) -> tuple[Tensor, list[Chunk], StepMode]:
        """Run the model and note the prompt's log-probabilities; logits [R, vocab] of the R chunks that draw."""
        rows: list[int] = []
        scored: list[tuple[int, Sequence, int]] = []
        drawing: list[Chunk] = []
        drawn_rows: list[int] = []
        first = 0
        for chunk in chunks:
            sequence = chunk.sequence
            for position in _scored_positions(chunk):
                scored.append((len(rows), sequence, sequence.request.prompt[position + 1]))
                rows.append(first + position - sequence.computed)
            first += chunk.count
            if chunk.draws and sequence.request.params.max_tokens:
                drawing.append(chunk)
                drawn_rows.append(len(rows))
                rows.append(first - 1)
        logits, mode = self._runner.run(chunks, rows)
        if scored:
            asked = [sequence.request.params.prompt_logprobs for _, sequence, _ in scored]
            picked = logits[[row for row, _, _ in scored]]
            found = token_outputs(picked, [token for _, _, token in scored], asked)
            for (_, sequence, _), output in zip(scored, found, strict=True):
                sequence.prompt_logprobs.append(output)
            logits = logits[drawn_rows]
        return logits, drawing, mode

    def _advance(self, sequence: Sequence, drawn: TokenOutput | None) -> Output:
        """Append a drawn token; None if the request wanted no tokens."""
        params = sequence.request.params
        if drawn is None:
            return self._end(sequence, "length")
        sequence.tokens.append(drawn.token)
        sequence.sampling.append(drawn.token)
        if sequence.first_token is None:
            sequence.first_token = time.monotonic()
        ends = drawn.token in params.ends(self._end_tokens) and not params.ignore_eos
        if ends or drawn.token in params.stop_token_ids:
            return self._end(sequence, "stop", tokens=(drawn,))
        if sequence.generated >= params.max_tokens or len(sequence.tokens) >= self.max_model_len:
            return self._end(sequence, "length", tokens=(drawn,))
        return _output(sequence, (drawn,))

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        error: str | None = None,
        tokens: tuple[TokenOutput, ...] = (),
    ) -> Output:
        self._scheduler.remove(sequence)
        return self._close(sequence, reason, error, tokens)

    def _close(
        self,
        sequence: Sequence,
        reason: FinishReason,
        error: str | None = None,
        tokens: tuple[TokenOutput, ...] = (),
    ) -> Output:
        request = sequence.request
        del self._sequences[request.request_id]
        sequence.finish_reason, sequence.error = reason, error
        if sequence.expert_error is not None:
            sequence.error = sequence.expert_error.public
        if not request.warm_up:
            self._observer.on_finish(self._finished(sequence, reason))
        return _output(sequence, tokens)

    def _finished(self, sequence: Sequence, reason: FinishReason) -> RequestRecord:
        request = sequence.request
        return RequestRecord(
            request_id=request.request_id,
            experts=tuple(name for name, _ in request.experts),
            prompt_tokens=len(request.prompt),
            prompt_counts=request.prompt_counts,
            cached_tokens=sequence.cached,
            generated_tokens=sequence.generated,
            finish_reason=reason,
            arrival=request.arrival,
            scheduled=sequence.scheduled,
            first_token=sequence.first_token,
            finished=time.monotonic(),
        )

    def _record(self, plan: Plan, mode: StepMode, seconds: float) -> StepRecord:
        prefill = sum(chunk.count for chunk in plan.chunks if chunk.prefill)
        tokens = sum(chunk.count for chunk in plan.chunks)
        return StepRecord(
            seconds=seconds,
            tokens=tokens,
            prefill_tokens=prefill,
            decode_tokens=tokens - prefill,
            sequences=len(plan.chunks),
            distinct_experts=len({digest for chunk in plan.chunks for digest in chunk.sequence.group}),
            mode=mode,
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            kv_blocks_used=self._pool.used,
            kv_blocks_total=self._pool.num_blocks,
            prefix_query_tokens=plan.prefix_query_tokens,
            prefix_hit_tokens=plan.prefix_hit_tokens,
            preemptions=plan.preemptions,
        )

    def _version(self, name: str) -> ExpertVersion:
        version = self.experts.get(name)
        if version is None:
            known = ", ".join(info.version.name for info in self.experts.infos()) or "none"
            raise UnknownExpert(f"no expert {name!r}; there are: {known}")
        return version


def _scored_positions(chunk: Chunk) -> range:
    """Positions of a chunk whose logits tell a prompt token's log-probability that is wanted and not known yet."""
    sequence = chunk.sequence
    if sequence.request.params.prompt_logprobs is None:
        return range(0)
    first = max(sequence.computed, len(sequence.prompt_logprobs) - 1)
    return range(first, min(sequence.computed + chunk.count, len(sequence.request.prompt) - 1))


def _mean(sequence: Sequence) -> tuple[float, ...] | None:
    if sequence.pooled is None:
        return None
    tokens = len(sequence.request.prompt) if sequence.request.pooling == "mean" else 1
    return tuple((sequence.pooled / tokens).tolist())


def _output(sequence: Sequence, tokens: tuple[TokenOutput, ...]) -> Output:
    asked = sequence.request.params.prompt_logprobs is not None
    first = sequence.generated <= 1 and sequence.finish_reason not in {"abort", "error"}
    return Output(
        request_id=sequence.request.request_id,
        tokens=tokens,
        finish_reason=sequence.finish_reason,
        error=sequence.error,
        expert_error=sequence.expert_error,
        cached_tokens=sequence.cached,
        prompt_logprobs=tuple(sequence.prompt_logprobs) if asked and first else None,
        pooled=_mean(sequence) if first else None,
    )
