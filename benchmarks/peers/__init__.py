"""Other servers on the same machine: installed into virtual environments of their own, and driven side by side."""

from benchmarks.peers.environment import PEFT, VLLM, Environment, PeerError, prepare
from benchmarks.peers.worker import Worker

__all__ = ["PEFT", "VLLM", "Environment", "PeerError", "Worker", "prepare"]
