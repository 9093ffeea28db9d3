"""One merge of a recipe in this process: `python -m benchmarks.merge.whole RECIPE OUT WORKERS`.

Prints {"seconds", "processor_seconds", "peak_rss_mb", "start_rss_mb", "stages"}. The memory is anonymous and shared
memory, of this process and of those that it starts: without pages of files, which the kernel takes back if it needs
them. The processor seconds are those of this process alone: with one worker all of them.
"""

import json
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from merge.run import merge_recipe

EVERY = 0.05
"""Seconds between two looks at the memory."""


class Memory:
    """Samples the anonymous memory of a process and its descendants, on a thread."""

    def __init__(self, process: int | None = None, every: float = EVERY) -> None:
        """Start to sample.

        Args:
            process: its number; None: this one.
            every: seconds between two looks. One takes about 3 ms of a processor.
        """
        self._process, self._every = process, every
        self.samples: list[tuple[float, float]] = []
        self.spent: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop sampling."""
        self._ended.set()
        self._thread.join()

    def peak(self, begin: float, stop: float) -> float:
        """The most between two times of `time.perf_counter`, in MB (10⁶ bytes)."""
        return max((size for at, size in self.samples if begin <= at <= stop), default=0.0)

    def processor(self, begin: float, stop: float) -> float:
        """Processor seconds of this process between two times of `time.perf_counter`."""
        inside = [spent for at, spent in self.spent if begin <= at <= stop]
        return inside[-1] - inside[0] if inside else 0.0

    def _sample(self) -> None:
        while not self._ended.wait(self._every):
            self.samples.append((time.perf_counter(), anonymous_mb(self._process)))
            self.spent.append((time.perf_counter(), time.process_time()))


def anonymous_mb(process: int | None = None) -> float:
    """Anonymous and shared memory of a process (None: this one) and its descendants, in MB."""
    children: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue  # it has ended
        fields = dict(re.findall(r"^(PPid|RssAnon|RssShmem):\s+(\d+)", text, re.MULTILINE))
        number = int(status.parent.name)
        children.setdefault(int(fields["PPid"]), []).append(number)
        sizes[number] = 1024 * (int(fields.get("RssAnon", 0)) + int(fields.get("RssShmem", 0)))
    total, waiting = 0, [process or os.getpid()]
    while waiting:
        number = waiting.pop()
        total += sizes.get(number, 0)
        waiting += children.get(number, [])
    return total / 1e6


def run(recipe: Path, out: Path, workers: int | None) -> dict[str, object]:
    """Merge a recipe and measure."""
    start_rss, spent = anonymous_mb(), time.process_time()
    memory, start = Memory(), time.perf_counter()
    try:
        report = merge_recipe(recipe, out, progress=True, workers=workers)
    finally:
        memory.end()
    stages, begin = {}, start
    for name, seconds in report.stages.items():
        stages[name] = {
            "seconds": seconds,
            "processor_seconds": memory.processor(begin, begin + seconds),
            "peak_rss_mb": memory.peak(begin, begin + seconds),
        }
        begin += seconds
    return {
        "seconds": report.seconds,
        "processor_seconds": time.process_time() - spent,
        "peak_rss_mb": memory.peak(start, start + report.seconds),
        "start_rss_mb": start_rss,
        "stages": stages,
        "backbone_bytes": report.backbone_bytes,
        "expert_bytes": {expert.name: expert.bytes for expert in report.experts},
    }


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    recipe, out, workers = arguments
    print(json.dumps(run(Path(recipe), Path(out), int(workers) or None)))


if __name__ == "__main__":
    main(sys.argv[1:])
