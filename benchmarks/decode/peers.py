"""Peers on the same model and the same cases.

Each is a worker that is asked `{"prompts", "adapters", "tokens"}` and answers `{"arrivals"}`: when each token of each
request came, in seconds since the question was understood.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from benchmarks import peers
from benchmarks.decode.cases import Case
from benchmarks.decode.runs import Runs
from benchmarks.decode.timing import Run, Timing
from benchmarks.peers import LLAMA, OPENVINO, PEFT, VLLM, Environment, PeerError, Worker, prepare

NAMES = ("vllm", "vllm-lora", "peft", "openvino", "llama.cpp")
QUANTISED = ("llama.cpp-Q8_0", "llama.cpp-Q4_0", "llama.cpp-Q4_K_M", "openvino-int8", "openvino-int4")
"""llama.cpp with the model in its own formats, as its `llama_model_quantize` makes them, and OpenVINO with the weights
that NNCF compresses."""
COMPILED = ("vllm-compiled", "vllm-lora-compiled")
"""vLLM with its model compiled by torch instead of eager, which takes minutes to start: run only if they are named."""
WITHOUT_ADAPTERS = ("vllm", "vllm-compiled", "openvino", "llama.cpp", *QUANTISED)
"""Peers that run only the backbone, with the options that are used here."""
FOLDER = Path(peers.__file__).parent
VLLM_SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "0-1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
"""Variables of a vLLM worker: one process, two cores, 2 GiB of KV cache."""


@contextmanager
def running(
    names: list[str], model: Path, loras: Path, vocabulary: int, length: int, say: Callable[[str], None]
) -> Iterator[Runs]:
    """Start peers; vLLM with LoRAs enabled is a separate peer, since it is slower on the backbone, too.

    A peer that cannot be installed or started is left out.

    Raises:
        PeerError: a peer is unknown.
    """
    unknown = sorted(set(names) - {*NAMES, *COMPILED, *QUANTISED})
    if unknown:
        raise PeerError(f"no peer {unknown[0]!r}; there are: {', '.join((*NAMES, *COMPILED, *QUANTISED))}")
    with ExitStack() as stack:
        runs = Runs(say)

        def start(name: str, script: str, of: Environment, *arguments: str, **environment: str) -> None:
            try:
                python = prepare(of, say)
                say(f"starting {name}")
                worker = stack.enter_context(Worker(name, [python, FOLDER / script, *arguments], environment))
            except PeerError as error:
                runs.leave_out(name, error)
            else:
                runs.add({name: _runner(name, worker, vocabulary)})

        for name in ("vllm", "vllm-lora", *COMPILED):
            if name in names:
                mode = "compiled" if name in COMPILED else "eager"
                folder = () if name in WITHOUT_ADAPTERS else (str(loras),)
                arguments = (str(model), str(length), mode, "bfloat16", *folder)
                start(name, "vllm_worker.py", VLLM, *arguments, **VLLM_SETTINGS)
        if "peft" in names:
            start("peft", "peft_worker.py", PEFT, str(model), str(loras))
        if "openvino" in names:
            start("openvino", "openvino_worker.py", OPENVINO, str(model))
        if "llama.cpp" in names:
            start("llama.cpp", "llama_worker.py", LLAMA, str(model), str(length))
        for name in QUANTISED:
            if name not in names:
                continue
            peer, _, storage = name.partition("-")
            if peer == "openvino":
                start(name, "openvino_worker.py", OPENVINO, str(model), storage)
            else:
                start(name, "llama_worker.py", LLAMA, str(model), str(length), storage)
        yield runs


def with_quantised(names: Sequence[str]) -> list[str]:
    """The peers that are named, and each of them with the model in its own formats of few bits."""
    return [*names, *(name for name in QUANTISED if name.partition("-")[0] in names)]


def takes(name: str, case: Case) -> bool:
    """Whether the engine or a peer runs a case: peers are asked for greedy tokens alone, and some have no adapters."""
    if case.sampled and name in (*NAMES, *COMPILED, *QUANTISED):
        return False
    return name not in WITHOUT_ADAPTERS or not any(case.experts)


def _runner(name: str, worker: Worker, vocabulary: int) -> Run:
    seeds = count()

    def run(case: Case, tokens: int) -> Timing:
        prompts = case.prompts(vocabulary, next(seeds))
        arrivals = worker.ask({"prompts": prompts, "adapters": case.experts, "tokens": tokens})["arrivals"]
        if (counts := [len(times) for times in arrivals]) != [tokens] * len(prompts):
            raise PeerError(f"{name} gave {counts} tokens, but {len(prompts)} requests asked for {tokens} each")
        return Timing(arrivals)

    return run
