"""Other servers on the same machine: installed into virtual environments of their own, and driven side by side.

`python -m benchmarks.peers` puts the same load on all of them over HTTP.
"""

from benchmarks.peers.environment import LLAMA, OPENVINO, PEFT, TRANSFORMERS, VLLM, Environment, PeerError, prepare
from benchmarks.peers.worker import Worker

__all__ = ["LLAMA", "OPENVINO", "PEFT", "TRANSFORMERS", "VLLM", "Environment", "PeerError", "Worker", "prepare"]
