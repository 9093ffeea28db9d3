"""The card, the software, and the ceilings that all results are compared with."""

from __future__ import annotations

import platform
import time
from importlib.util import find_spec

import torch

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.report import Value, measure, rounded


def run(clock: Clock) -> None:
    """Tell all of it."""
    measure("environment", lambda: _environment(clock))
    measure("bandwidth", lambda: _bandwidth(clock))
    measure("bf16_tflop_s", lambda: _product(clock))
    x = torch.zeros(8, 896, device=clock.device)
    measure("graph_node_us", lambda: rounded(clock.microseconds([lambda: x.add_(1.0)] * (400 if clock.on_gpu else 10))))
    measure("eager_op_us", lambda: _eager(clock))


def _environment(clock: Clock) -> Value:
    found: dict[str, Value] = {"python": platform.python_version(), "torch": torch.__version__}
    if find_spec("triton") is not None:
        import triton

        found["triton"] = triton.__version__
    if clock.on_gpu:
        properties = torch.cuda.get_device_properties(clock.device)
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
            "card": properties.name,
            "processors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "l2_mb": rounded(properties.L2_cache_size / 1e6),
            "free_gb": rounded(torch.cuda.mem_get_info(clock.device)[0] / 1e9),
        }
    return found


def _bandwidth(clock: Clock) -> Value:
    size = 1 << (32 if clock.on_gpu else 20)
    source, target = (torch.empty(size, dtype=torch.uint8, device=clock.device) for _ in range(2))
    host = torch.empty(size >> 3, dtype=torch.uint8, pin_memory=clock.on_gpu)
    copied = clock.seconds(lambda: target.copy_(source))
    read = clock.seconds(lambda: source.view(torch.int32).sum(dtype=torch.int64))
    sent = clock.seconds(lambda: target[: len(host)].copy_(host, non_blocking=True))
    return {
        "copy_tb_s": rounded(2 * size / copied / 1e12),
        "read_tb_s": rounded(size / read / 1e12),
        "from_host_gb_s": rounded(len(host) / sent / 1e9),
    }


def _product(clock: Clock) -> float:
    n = 8192 if clock.on_gpu else 256
    a, b = (torch.randn(n, n, device=clock.device, dtype=torch.bfloat16) for _ in range(2))
    return rounded(2 * n**3 / clock.seconds(lambda: a @ b) / 1e12)


def _eager(clock: Clock) -> float:
    """Microseconds that the host takes for an operation."""
    x, rounds = torch.zeros(8, 896, device=clock.device), 1000 if clock.on_gpu else 10
    for _ in range(rounds):
        x.add_(1.0)
    clock.wait()
    start = time.perf_counter()
    for _ in range(rounds):
        x.add_(1.0)
    taken = time.perf_counter() - start
    clock.wait()
    return rounded(taken / rounds * 1e6)
