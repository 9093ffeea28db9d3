"""How much of the fine-tunes the experts restore, over their density, the way they are cut, and the backbone.

`python -m benchmarks.density --json` merges the zoo once for each density and kind of expert and prints the routed
exact match of each bundle, beside the fine-tunes' and the backbone's; `--plot FILE` draws the curves (extra `bench`).
`--backbones` sets the tiny demo's own merge method beside others, with the coefficients that `benchmarks.quality`
chose on validation prompts.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from merge.evaluate import Evaluation
from merge.run import merge_recipe
from serve.demo.check import check
from serve.demo.tiny import RECIPE

DENSITIES = (0.01, 0.02, 0.05, 0.10)
KINDS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"selection": "magnitude", "values": "rescaled", "rescale": "code", "distill": 0, "storage": "bf16"},
    "activation": {"selection": "activation", "values": "least_squares", "distill": 0, "storage": "bf16"},
    "activation+distill": {"selection": "activation", "values": "least_squares", "distill": 60, "storage": "bf16"},
    "activation+distill+int8": {
        "selection": "activation",
        "values": "least_squares",
        "distill": 60,
        "storage": "int8",
    },
}
BACKBONES: Mapping[str, Mapping[str, Any]] = {
    "demo": {},
    "fr": {"merge_method": "fr", "parameters": {"filter": "official", "r": 0.7, "lambda": 0.2}},
    "tsv_m": {"merge_method": "tsv_m", "parameters": {"lambda": 0.7}},
    "iso_c": {"merge_method": "iso_c", "parameters": {"lambda": 0.6}},
    "task_arithmetic": {"merge_method": "task_arithmetic", "parameters": {"weight": 0.1}},
}


def measure(backbone: str, kind: str, density: float, prompts_per_task: int) -> Evaluation:
    """Merge the tiny demo's recipe with another backbone and other experts, and measure the bundle as the demo does."""
    recipe = yaml.safe_load(RECIPE.read_text()) | BACKBONES[backbone]
    folder = RECIPE.parent
    recipe["base_model"] = str(folder / recipe["base_model"])
    recipe["calibration"]["file"] = str(folder / recipe["calibration"]["file"])
    for model in recipe["models"]:
        model["model"] = str(folder / model["model"])
    recipe["experts"] = {**recipe["experts"], **KINDS[kind], "density": density}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "recipe.yml")
        path.write_text(yaml.safe_dump(recipe))
        merge_recipe(path, Path(scratch, "bundle"), progress=False, workers=None)
        return check(Path(scratch, "bundle"), chat=False, prompts=prompts_per_task)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.density", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    parser.add_argument("--prompts", type=int, default=50, help="prompts a task (default 50)")
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), default=["demo"])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--densities", nargs="+", type=float, default=list(DENSITIES))
    parser.add_argument("--plot", type=Path, help="write the curves to this image file")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for backbone, kind, density in product(arguments.backbones, arguments.kinds, arguments.densities):
        result = measure(backbone, kind, density, arguments.prompts)
        average, size = result.as_json()["average"], result.expert_bytes_fraction
        row = {"method": backbone, "experts": kind, "density": density, **average, "expert_bytes_fraction": size}
        rows.append(row)
        if not arguments.json:
            print(
                f"{backbone:<15} {kind:<23} {density:6.1%}  routed {average['routed']:.3f}  "
                f"backbone {average['backbone']:.3f}  fine-tunes {average['fine_tune']:.3f}  bytes {size:.1%}",
                flush=True,
            )
    if arguments.plot:
        plot(rows, arguments.plot)
    if arguments.json:
        print(json.dumps({"prompts_per_task": arguments.prompts, "rows": rows}, indent=2))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw routed accuracy over density, a line for each backbone and kind; fine-tunes and backbone as levels."""
    from matplotlib.figure import Figure  # the extra `bench`, needed for the picture alone

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for method, kind in dict.fromkeys((row["method"], row["experts"]) for row in rows):
        same = [row for row in rows if (row["method"], row["experts"]) == (method, kind)]
        label = kind if method == "demo" else f"{method}, {kind}"
        axes.plot([100 * row["density"] for row in same], [row["routed"] for row in same], marker="o", label=label)
    for name, style in (("fine_tune", "--"), ("backbone", ":")):
        level = sum(row[name] for row in rows) / len(rows)
        axes.axhline(level, color="grey", linestyle=style, label=name.replace("_", "-"))
    axes.set(xlabel="entries kept, % of each row", ylabel="routed exact match", ylim=(0, 1.02), xscale="log")
    ticks = sorted({100 * row["density"] for row in rows})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    main()
