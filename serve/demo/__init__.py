"""The demo: models merged, served and, with `--check`, measured over HTTP."""

from serve.demo.demo import Demo
from serve.demo.smollm2 import SMOLLM2
from serve.demo.tiny import TINY, zoo_bundle

__all__ = ["SMOLLM2", "TINY", "Demo", "zoo_bundle"]
