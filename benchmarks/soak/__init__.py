"""The soak: a real server under mixed load for minutes, where every request must end and nothing may pile up.

`load` makes the requests, good and bad; `tally` says how each of them ended; `memory` fits a line to what the server
holds; `run` puts them together.
"""

from benchmarks.soak.run import Plan, Report, soak

__all__ = ["Plan", "Report", "soak"]
