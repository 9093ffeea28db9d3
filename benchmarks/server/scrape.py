"""A server's own figures."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Scrape:
    """The series of /metrics that have no labels, at one moment."""

    series: Mapping[str, float]

    @classmethod
    def of(cls, text: str) -> "Scrape":
        """Read Prometheus' text."""
        return cls({name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)})

    @property
    def unfinished(self) -> int:
        """Sequences that run or wait."""
        return int(self.series["overtone_num_requests_running"] + self.series["overtone_num_requests_waiting"])

    @property
    def held_blocks(self) -> int:
        """KV blocks that sequences hold."""
        return round(self.series["overtone_kv_cache_usage_perc"] * self.series["overtone_kv_cache_blocks"])

    @property
    def resident_bytes(self) -> float:
        """The process' memory."""
        return self.series["process_resident_memory_bytes"]
