"""Requests that compute prompts alone: nothing is generated."""

from collections.abc import Sequence

from serve.api.errors import expert_unavailable, internal, unavailable
from serve.api.generation import refusal
from serve.api.service import Runtime
from serve.engine import EngineError, Output, Request, SamplingParams
from serve.metrics import HttpMetrics

AT_ONCE = 64
"""Requests that one client may have in the engine at once; the others of its batch wait here and not in the queue."""


def prompt_params(prompt_logprobs: int | None = None) -> SamplingParams:
    """Nothing to draw."""
    return SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=prompt_logprobs)


async def prefill(runtime: Runtime, metrics: HttpMetrics, requests: Sequence[Request]) -> list[Output]:
    """The last output of each request, in order.

    Raises:
        ApiError: the engine refuses a request, or gives it up.
    """
    outputs: list[Output] = []
    for start in range(0, len(requests), AT_ONCE):
        outputs += await _together(runtime, metrics, requests[start : start + AT_ONCE])
    return outputs


async def _together(runtime: Runtime, metrics: HttpMetrics, requests: Sequence[Request]) -> list[Output]:
    streams, outputs = [], list[Output]()
    try:
        for request in requests:
            streams.append(runtime.engine.generate(request))
            metrics.admitted(name for name, _ in request.experts)
        for stream in streams:
            await stream.admitted()
        for stream in streams:
            async for output in stream:
                _check(output)
                if output.finish_reason is not None:
                    outputs.append(output)
                    break
            else:
                raise unavailable("the engine has stopped", "engine_dead")
    except EngineError as error:
        raise refusal(error) from error
    finally:
        for number, request in enumerate(requests[: len(streams)]):
            done = number < len(outputs)
            metrics.finished("length" if done else "abort", (name for name, _ in request.experts))
            if not done:
                runtime.engine.abort(request.request_id)
    return outputs


def _check(output: Output) -> None:
    if output.expert_error is not None:
        raise expert_unavailable(output.expert_error)
    if output.finish_reason == "error":
        raise internal(output.error or "the engine gave the request up")
    if output.finish_reason == "abort":
        raise unavailable("the server stopped before the request was finished", "aborted")
