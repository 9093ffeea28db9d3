"""Thousands of seeded requests that no sane client would send: none may bring the server down or leave anything behind.

`bodies` makes them, `attack` sends them and looks at what comes back.
"""

from benchmarks.fuzz.attack import Report, attack
from benchmarks.fuzz.bodies import Bodies, Shot

__all__ = ["Bodies", "Report", "Shot", "attack"]
