"""The demo: models merged, served and, with `--check`, measured over HTTP."""

from benchmarks.demo.demo import GOAL, Demo
from benchmarks.demo.tiny import TINY, zoo_bundle

__all__ = ["GOAL", "TINY", "Demo", "zoo_bundle"]
