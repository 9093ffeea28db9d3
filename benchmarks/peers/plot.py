"""The servers side by side as a picture (extra `bench`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: time per token of every load, a bar a server, with the rounds' extremes."""
    loads = list(dict.fromkeys(load for measured in report["servers"].values() for load in measured))
    height = 0.8 / max(1, len(report["servers"]))
    figure = Figure(figsize=(7.2, 0.6 + 0.62 * len(loads)), layout="constrained")
    axes = figure.subplots()
    for place, (name, measured) in enumerate(report["servers"].items()):
        present = [load for load in loads if load in measured and not measured[load]["failed"]]
        middle = [measured[load]["tpot_ms"] for load in present]
        spread = [
            [measured[load]["tpot_ms"] - measured[load]["tpot_ms_min"] for load in present],
            [measured[load]["tpot_ms_max"] - measured[load]["tpot_ms"] for load in present],
        ]
        at = [loads.index(load) + (place + 0.5) * height - 0.4 for load in present]
        axes.barh(at, middle, 0.9 * height, xerr=spread, error_kw={"linewidth": 0.8}, label=name)
    axes.set_yticks(range(len(loads)), loads)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per token after the first, median")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
