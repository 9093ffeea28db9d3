"""The command: `python -m benchmarks.merge`."""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.merge.child import FRANK_WOLFE
from benchmarks.merge.compare import SAME, compare
from benchmarks.merge.launch import merge_once, merge_recipe_once
from benchmarks.merge.pool import FULL, QUICK, Size, model_name, write_loras, write_pool
from benchmarks.merge.served import measure_served
from benchmarks.merge.shape import SHAPES, TASKS, estimates, parameter_shapes, write_recipe
from merge.checkpoint import open_checkpoint
from merge.methods import METHODS

POOLS = (2, 8, 32)
EVERY = (*sorted(set(METHODS) - {"nuslerp"}), *FRANK_WOLFE)
SLOW = ("tsv_m",)
"""Left out unless named: a singular value decomposition for each matrix and model takes an hour for 32 models."""

BLOCK = 8 << 20


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge", description="Memory and time of merging.")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    parser.add_argument("--quick", action="store_true", help="models of 5 M parameters and pools of 2, 4 and 8")
    parser.add_argument(
        "--methods", nargs="+", choices=EVERY, help=f"methods to run (default: all but {', '.join(SLOW)})"
    )
    parser.add_argument("--mergekit", action="store_true", help="compare with mergekit instead")
    parser.add_argument("--models", type=int, default=8, help="models of --mergekit (default 8)")
    parser.add_argument("--loras", action="store_true", help="compare on LoRAs, which mergekit merges first")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of --mergekit (default 3)")
    parser.add_argument("--dir", type=Path, help="make the models there, or take those that are, and leave them")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="merge four LoRAs of a random model of this shape")
    parser.add_argument("--layers", type=int, help="decoder layers of --shape (default: all)")
    parser.add_argument("--prompts", type=int, default=0, help="calibration prompts a task of --shape (default 0)")
    parser.add_argument("--experts", type=json.loads, default={}, help="experts block of --shape, as JSON")
    parser.add_argument("--estimate", action="store_true", help="print the estimates of --shape and merge nothing")
    parser.add_argument("--out", type=Path, help="leave the bundle of --shape there")
    parser.add_argument("--serve", type=Path, help="serve the bundle that --shape --out left, and measure instead")
    parser.add_argument("--quantization", choices=("int8", "int4"), help="quantization of --serve")
    parser.add_argument("--workers", type=int, default=0, help="workers of --shape (default: as many as fit)")
    arguments = parser.parse_args()
    if arguments.shape is not None and arguments.layers is not None and arguments.layers < 1:
        parser.error("--layers must be at least 1")
    size = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory(prefix="overtone-merge-") as scratch:
        folder = arguments.dir or Path(scratch)
        try:
            if arguments.serve is not None:
                result = measure_served(arguments.serve, arguments.quantization)
            elif arguments.estimate and arguments.shape is not None:
                result = {"shape": arguments.shape, **estimates(SHAPES[arguments.shape])}
            elif arguments.shape is not None:
                result = _shaped(folder, arguments)
            elif arguments.mergekit:
                result = _against_mergekit(folder, size, arguments)
            else:
                methods = arguments.methods or [name for name in EVERY if name not in SLOW]
                result = _methods(folder, size, (2, 4, 8) if arguments.quick else POOLS, methods)
        except (RuntimeError, OSError) as error:
            parser.exit(1, f"{parser.prog}: error: {error}\n")
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(_table(result))


def _shaped(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    config = dict(SHAPES[arguments.shape])
    if arguments.layers is not None:
        config["num_hidden_layers"] = arguments.layers
    (method,) = arguments.methods or ["task_arithmetic"]
    _say(f"{arguments.shape} with {config['num_hidden_layers']} layers and {len(TASKS)} LoRAs in {folder}")
    recipe = write_recipe(folder, config, method, arguments.prompts, arguments.experts)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        measured = merge_recipe_once(recipe, arguments.out or Path(scratch) / "bundle", arguments.workers)
    return {
        "shape": arguments.shape,
        "layers": config["num_hidden_layers"],
        "parameters": sum(math.prod(shape) for shape in parameter_shapes(config).values()),
        "method": method,
        "prompts": arguments.prompts,
        "estimates_of_the_whole_model": estimates(SHAPES[arguments.shape]),
        "counter": "anonymous and shared memory of the merge's processes, without pages of files",
        "threads": os.cpu_count(),
        **measured,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _methods(scratch: Path, size: Size, pools: tuple[int, ...], methods: list[str]) -> dict[str, Any]:
    _pool(scratch, size, pools[-1])
    rows: dict[str, Any] = {}
    few, many = pools[0], pools[-1]
    for method in methods:
        runs = {}
        for count in pools:
            with tempfile.TemporaryDirectory(dir=scratch) as out:
                runs[count] = merge_once(scratch, method, count, Path(out), "float32", {})
            _say(f"{method}, {count} models: {runs[count]['peak_rss_mb']:.0f} MB, {runs[count]['seconds']:.1f} s")
        rows[method] = {
            f"rss_ratio_{many}_to_{few}": runs[many]["peak_rss_mb"] / runs[few]["peak_rss_mb"],
            "peak_rss_mb": {str(count): run["peak_rss_mb"] for count, run in runs.items()},
            "start_rss_mb": {str(count): run["start_rss_mb"] for count, run in runs.items()},
            "seconds": {str(count): run["seconds"] for count, run in runs.items()},
        }
    return {
        "parameters": size.parameters,
        "model_mb": 4 * size.parameters / 1e6,
        "counter": "VmHWM of the merging process, memory-mapped file pages included",
        "threads": os.cpu_count(),
        "methods": rows,
        "disk_read_gbps": _disk_read_gbps([scratch / model_name(i) / "model.safetensors" for i in range(pools[0])]),
    }


def _against_mergekit(scratch: Path, size: Size, arguments: argparse.Namespace) -> dict[str, Any]:
    count, methods = arguments.models, arguments.methods or SAME
    _pool(scratch, size, 0 if arguments.loras else count)
    if arguments.loras:
        write_loras(scratch, count)
        compared = compare(scratch, count, arguments.rounds, methods, _say, loras=True)
        return {"parameters": size.parameters, "mergekit": compared}
    compared = compare(scratch, count, arguments.rounds, methods, _say)
    cached = _page_cache_seconds(scratch, count)
    speed = _disk_read_gbps([scratch / model_name(i) / "model.safetensors" for i in range(count)])
    read = 4 * size.parameters * (count + 1) / 1e9
    return {
        "parameters": size.parameters,
        "mergekit": compared,
        "disk_read_gbps": speed,
        "seconds_to_read_the_models": read / speed,
        "page_cache_seconds": cached,
    }


def _pool(folder: Path, size: Size, count: int) -> None:
    """Make the models that are not there yet."""
    _say(f"{count + 1} models of {size.parameters / 1e6:.1f} M parameters in {folder}")
    write_pool(folder, size, count, torch.float32)


def _page_cache_seconds(scratch: Path, count: int) -> dict[str, float]:
    """What no merge can do without: seconds to read all models once and to write one, the disk left out of it."""
    models = [scratch / "base", *(scratch / model_name(i) for i in range(count))]
    begin = time.perf_counter()
    for model in map(open_checkpoint, models):
        for name in model.tensors:
            model.tensor(name)  # looks at every value
    read = time.perf_counter()
    block = torch.ones(BLOCK, dtype=torch.uint8).numpy().data
    with tempfile.TemporaryFile(dir=scratch) as file:
        for _ in range((models[0] / "model.safetensors").stat().st_size // BLOCK):
            file.write(block)
    return {"read": read - begin, "write": time.perf_counter() - read}


def _disk_read_gbps(files: list[Path]) -> float:
    """Gigabytes (10⁹) a second that files are read with, after the kernel dropped them from its cache."""
    read, start = 0, 0.0
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            begin = time.perf_counter()
            while block := os.read(descriptor, BLOCK):
                read += len(block)
            start += time.perf_counter() - begin
        finally:
            os.close(descriptor)
    return read / start / 1e9


def _table(result: dict[str, Any]) -> str:
    lines = []
    if "ready_seconds" in result or ("seconds" not in result and "shape" in result):
        return json.dumps(result, indent=2)
    if "shape" in result:
        whole = f"{result['seconds']:.0f} s, {result['peak_rss_mb']:.0f} MB"
        lines.append(f"{result['shape']}, {result['layers']} layers: {whole}")
        lines += [
            f"  {name:10}{row['seconds']:8.1f} s {row['peak_rss_mb']:8.0f} MB" for name, row in result["stages"].items()
        ]
    for method, row in result.get("methods", {}).items():
        ratio = next(value for key, value in row.items() if key.startswith("rss_ratio"))
        cells = [
            f"{count}: {row['peak_rss_mb'][count]:5.0f} MB {row['seconds'][count]:6.1f} s" for count in row["seconds"]
        ]
        lines.append(f"{method:17}{'   '.join(cells)}   ratio {ratio:.2f}")
    if "disk_read_gbps" in result:
        lines.append(f"disk: {result['disk_read_gbps']:.2f} GB/s")
    for method, row in result.get("mergekit", {}).get("methods", {}).items():
        programs = ", ".join(
            f"{name} {row[name]['seconds']:.1f} s ({row[name]['processor_seconds']:.1f} s of processors, "
            f"{row[name]['process_seconds']:.1f} s in all) {row[name]['peak_rss_mb']:.0f} MB"
            for name in ("overtone", "mergekit")
        )
        lines.append(f"{method:17}{programs}; {row['speedup']:.1f} times")
        if "entries" in row:
            lines[-1] += (
                f"; largest difference {row['max_abs_difference']:.1e}, {row['entries_over_tolerance']} of "
                f"{row['entries']} entries over {row['tolerance']:.0e}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
