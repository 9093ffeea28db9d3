"""One token before the first client's: what is compiled or allocated on first use is there when the server is ready."""

import gc
import logging

from serve.api.service import Runtime
from serve.engine import Request, SamplingParams

_log = logging.getLogger("overtone")


async def warm_up(runtime: Runtime) -> None:
    """Generate with the backbone alone, and with an expert where there is one. The engine must be running.

    An expert that fails is only logged: the others, and the backbone, can be served.

    Raises:
        ValueError: the backbone cannot generate.
    """
    if (error := await _token(runtime, ())) is not None:
        raise ValueError(f"the model does not generate: {error}")
    for name in list(runtime.catalogue.experts)[:1]:
        if (error := await _token(runtime, ((name, 1.0),))) is not None:
            _log.warning("the expert %s does not generate: %s", name, error)
    # What is loaded stays. With it, each full collection would stop all threads for 0.15 s.
    gc.collect()
    gc.freeze()


async def _token(runtime: Runtime, experts: tuple[tuple[str, float], ...]) -> str | None:
    """Two tokens, one after the prompt and one by decoding; the error, if there is one."""
    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    request = Request("warm-up", (0,), params, experts, warm_up=True)
    async for output in runtime.engine.generate(request):
        if output.finish_reason == "error":
            return output.error or "no reason given"
    return None
