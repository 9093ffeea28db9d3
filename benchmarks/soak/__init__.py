"""The soak: a real server under mixed load for minutes. Every request must end, and memory must not grow.

`load` makes the requests, good and bad; `tally` counts how they ended and fits a line to the server's memory;
`run` puts them together.
"""

from benchmarks.soak.run import Plan, Report, soak

__all__ = ["Plan", "Report", "soak"]
