"""What the server exports to Prometheus: vLLM's names under `overtone_`, on a separate registry.

An `expert` label appears on counters and gauges only, and on a bounded number of names; histograms, which cost a line a
bucket, are never split by expert.
"""

from serve.metrics.engine import EngineMetrics
from serve.metrics.http import HttpMetrics
from serve.metrics.labels import CappedNames
from serve.metrics.metrics import Metrics
from serve.metrics.router import RouterMetrics
from serve.metrics.state import StateMetrics

__all__ = ["CappedNames", "EngineMetrics", "HttpMetrics", "Metrics", "RouterMetrics", "StateMetrics"]
