"""Peers on the same model and the same cases."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.decode.cases import Case
from benchmarks.peers import OPENVINO, PEFT, VLLM, PeerError, Worker, prepare

NAMES = ("vllm", "vllm-lora", "peft", "openvino")
WITHOUT_ADAPTERS = ("vllm", "openvino")
"""Peers, as they are started here, that run the backbone alone."""
FOLDER = Path(peers.__file__).parent

Ask = Callable[[Case, int, int], float]
"""Case, tokens to generate and seed to seconds."""


@contextmanager
def running(
    names: list[str], model: Path, loras: Path, vocabulary: int, length: int, say: Callable[[str], None]
) -> Iterator[dict[str, Ask]]:
    """Start peers; vLLM with LoRAs enabled is one of its own, since it is slower on the backbone, too.

    Raises:
        PeerError: a peer is unknown, or cannot be installed or started.
    """
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise PeerError(f"no peer {unknown[0]!r}; there are: {', '.join(NAMES)}")
    with ExitStack() as stack:
        found: dict[str, Ask] = {}

        def start(name: str, script: str, python: Path, *arguments: str, **environment: str) -> None:
            say(f"starting {name}")
            worker = stack.enter_context(Worker(name, [python, FOLDER / script, *arguments], environment))
            found[name] = _asker(worker, vocabulary)

        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": "0-1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
        if "vllm" in names:
            start("vllm", "vllm_worker.py", prepare(VLLM, say), str(model), str(length), **settings)
        if "vllm-lora" in names:
            python = prepare(VLLM, say)
            start("vllm-lora", "vllm_worker.py", python, str(model), str(length), str(loras), **settings)
        if "peft" in names:
            start("peft", "peft_worker.py", prepare(PEFT, say), str(model), str(loras))
        if "openvino" in names:
            start("openvino", "openvino_worker.py", prepare(OPENVINO, say), str(model))
        yield found


def takes(name: str, case: Case) -> bool:
    """Whether a peer can run a case at all."""
    return name not in WITHOUT_ADAPTERS or not any(case.experts)


def _asker(worker: Worker, vocabulary: int) -> Ask:
    def ask(case: Case, tokens: int, seed: int) -> float:
        question: dict[str, Any] = {
            "prompts": case.prompts(vocabulary, seed),
            "adapters": case.experts,
            "tokens": tokens,
        }
        return float(worker.ask(question)["seconds"])

    return ask
