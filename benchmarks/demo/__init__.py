"""The demo: the zoo merged, served and, with `--check`, measured over HTTP."""

from benchmarks.demo.bundle import zoo_bundle
from benchmarks.demo.check import GOAL, check
from benchmarks.demo.examples import EXAMPLES, curl_lines

__all__ = ["EXAMPLES", "GOAL", "check", "curl_lines", "zoo_bundle"]
