"""Pictures of sweeps: latency against rate, and what distinct experts cost."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from serve.bench.sweep import Run, floor, tax


def plot_rates(runs: Sequence[Run], path: Path) -> None:
    """Median and 99th percentile of the time to the first token and of each further one, against the rate."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, field, title in zip(
        panels, ("ttft_ms", "tpot_ms"), ("time to first token", "time per token"), strict=True
    ):
        for quantile, style in (("p50", "o-"), ("p99", "s--")):
            points = [
                (run.arrivals.rate or run.arrivals.users, getattr(spread, quantile))
                for run in runs
                if (spread := getattr(run.summary, field)) is not None
            ]
            panel.plot(*zip(*points, strict=True), style, label=quantile)
        panel.set(title=title, xlabel="requests/s" if runs[0].arrivals.rate else "users", ylabel="ms", ylim=(0, None))
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=120)


def plot_tax(runs: Sequence[Run], path: Path, density: float) -> None:
    """What distinct experts cost, beside the floor: the bytes of their entries over the bytes of the weights."""
    ratios = tax(runs)
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    panel = figure.subplots()
    panel.plot(list(ratios), list(ratios.values()), "o-", label="measured")
    panel.plot(
        list(ratios), [floor(count, density) for count in ratios], "k:", label=f"bytes, at {density:.0%} of the entries"
    )
    panel.set(xlabel="distinct experts in the load", ylabel="time per token / backbone's", ylim=(0.9, None))
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(path, dpi=120)
