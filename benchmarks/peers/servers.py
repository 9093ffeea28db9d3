"""How each server is started on the benchmark's model, and by which names it knows the experts."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.peers.environment import TRANSFORMERS, VLLM, PeerError, prepare
from benchmarks.peers.server import Server, free_port
from serve.bench.target import Target

NAMES = ("overtone", "vllm", "transformers")
USERS = 8
PLAIN_TOKENIZER = Path(__file__).with_name("plain_tokenizer.py")
TRANSFORMERS_MODULE = "transformers.cli.transformers"
VLLM_MODULE = "vllm.entrypoints.openai.api_server"
VLLM_SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "0-1"}


@contextmanager
def running(
    names: list[str], bundle: Path, loras: Path, experts: list[str], say: Callable[[str], None]
) -> Iterator[Mapping[str, tuple[Server, Target]]]:
    """Start servers; the block gets each with its target.

    Args:
        names: of `NAMES`.
        bundle: for ours; its backbone for the others.
        loras: adapters of PEFT, one folder an expert.
        experts: their names.
        say: receives lines about the progress.

    Raises:
        PeerError: a server is unknown, or cannot be installed or started.
    """
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise PeerError(f"no server {unknown[0]!r}; there are: {', '.join(NAMES)}")
    backbone, ours = str(bundle / "backbone"), {name: name for name in experts}
    with ExitStack() as stack:
        found: dict[str, tuple[Server, Target]] = {}

        def start(name: str, command: list[str | Path], target: Target, probe: str, **environment: str) -> None:
            say(f"starting {name}")
            found[name] = (stack.enter_context(Server(name, command, target.url, probe, environment)), target)

        program: list[str | Path]
        if "overtone" in names:
            port = str(free_port())
            command = [
                sys.executable,
                "-m",
                "serve.cli",
                "serve",
                str(bundle),
                "--port",
                port,
                "--log-level",
                "warning",
            ]
            target = Target(f"http://127.0.0.1:{port}", "backbone", ours)
            options = f"--no-enable-prefix-caching --max-num-seqs {USERS}"
            start("overtone", [*command, *options.split()], target, "/ready")
        if "vllm" in names:
            port = str(free_port())
            program = [prepare(VLLM, say), PLAIN_TOKENIZER, VLLM_MODULE]
            options = "--host 127.0.0.1 --dtype bfloat16 --served-model-name base --max-model-len 2048 --enforce-eager"
            options += f" --no-enable-prefix-caching --max-num-seqs {USERS} --max-lora-rank 16 --enable-lora"
            options += f" --max-loras {len(experts)} --lora-modules"
            adapters = [f"{name}={loras / name}" for name in experts]
            start(
                "vllm",
                # Not `vllm serve`, which asks for the version of a package named vllm and this one is named vllm-cpu.
                [*program, "--model", backbone, "--port", port, *options.split(), *adapters],
                Target(f"http://127.0.0.1:{port}", "base", ours),
                "/health",
                **VLLM_SETTINGS,
            )
        if "transformers" in names:
            port = str(free_port())
            program = [prepare(TRANSFORMERS, say), PLAIN_TOKENIZER, TRANSFORMERS_MODULE]
            # By default it takes most of the free memory for its cache at the first request.
            options = "--host 127.0.0.1 --dtype bfloat16 --continuous-batching"
            options += " --cb-block-size 32 --cb-num-blocks 512 --cb-max-batch-tokens 512"
            start(
                "transformers",
                [*program, "serve", backbone, "--port", port, *options.split()],
                Target(f"http://127.0.0.1:{port}", backbone, extensions=False),
                "/health",
                HF_HUB_OFFLINE="1",
            )
        yield found
