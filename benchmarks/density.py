"""How much of the fine-tunes the experts restore, over their density and the way they are cut.

`python -m benchmarks.density --json` merges the zoo once for each density and kind of expert and prints the routed
exact match of each bundle, beside the fine-tunes' and the backbone's; `--plot FILE` draws the curves (extra `bench`).
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.demo.bundle import RECIPE
from benchmarks.evaluation import Evaluation, evaluate, unseen_prompts
from benchmarks.evaluation.engine import engine_asker
from benchmarks.zoo import fine_tune_dirs
from benchmarks.zoo.matching import MAX_NEW_TOKENS
from merge.bundle import open_bundle
from merge.run import merge_recipe

DENSITIES = (0.01, 0.02, 0.05, 0.10)
KINDS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"selection": "magnitude", "values": "rescaled", "rescale": "code", "distill": 0},
    "activation": {"selection": "activation", "values": "least_squares", "distill": 0},
    "activation+distill": {"selection": "activation", "values": "least_squares", "distill": 60},
    "activation+distill+int8": {
        "selection": "activation",
        "values": "least_squares",
        "distill": 60,
        "storage": "int8",
    },
}


def measure(kind: str, density: float, prompts_per_task: int) -> Evaluation:
    """Merge the demo's recipe with other experts and measure the bundle in this process."""
    recipe = yaml.safe_load(RECIPE.read_text())
    folder = RECIPE.parent
    recipe["base_model"] = str(folder / recipe["base_model"])
    recipe["calibration"]["file"] = str(folder / recipe["calibration"]["file"])
    for model in recipe["models"]:
        model["model"] = str(folder / model["model"])
    recipe["experts"] = {**recipe["experts"], **KINDS[kind], "density": density}
    examples = unseen_prompts(prompts_per_task)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "recipe.yml")
        path.write_text(yaml.safe_dump(recipe))
        merge_recipe(path, Path(scratch, "bundle"), progress=False, workers=None)
        bundle = open_bundle(Path(scratch, "bundle"))
        with engine_asker(bundle, MAX_NEW_TOKENS) as ask:
            return evaluate(ask, bundle, examples, fine_tune_dirs(examples))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.density", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    parser.add_argument("--prompts", type=int, default=50, help="prompts a task (default 50)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--densities", nargs="+", type=float, default=list(DENSITIES))
    parser.add_argument("--plot", type=Path, help="write the curves to this image file")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for kind in arguments.kinds:
        for density in arguments.densities:
            result = measure(kind, density, arguments.prompts)
            average = result.as_json()["average"]
            row = {
                "experts": kind,
                "density": density,
                **average,
                "expert_bytes_fraction": result.expert_bytes_fraction,
            }
            rows.append(row)
            if not arguments.json:
                print(
                    f"{kind:<23} {density:6.1%}  routed {average['routed']:.3f}  backbone {average['backbone']:.3f}  "
                    f"fine-tunes {average['fine_tune']:.3f}  bytes {result.expert_bytes_fraction:.1%}",
                    flush=True,
                )
    if arguments.plot:
        plot(rows, arguments.plot)
    if arguments.json:
        print(json.dumps({"prompts_per_task": arguments.prompts, "rows": rows}, indent=2))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw routed accuracy over density, one line a kind, with the fine-tunes and the backbone as levels."""
    from matplotlib.figure import Figure  # the extra `bench`, needed for the picture alone

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for kind in dict.fromkeys(row["experts"] for row in rows):
        points = [(100 * row["density"], row["routed"]) for row in rows if row["experts"] == kind]
        axes.plot(*zip(*points, strict=True), marker="o", label=kind)
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
