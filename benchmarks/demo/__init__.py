"""The demo: models merged, served and, with `--check`, measured over HTTP."""

from benchmarks.demo.demo import Demo
from benchmarks.demo.smollm2 import SMOLLM2
from benchmarks.demo.tiny import TINY, zoo_bundle

__all__ = ["SMOLLM2", "TINY", "Demo", "zoo_bundle"]
