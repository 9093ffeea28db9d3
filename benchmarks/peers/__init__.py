"""Other servers on the same machine: installed into separate virtual environments, and measured in turn.

`python -m benchmarks.peers` puts the same load on all of them over HTTP.
"""

from benchmarks.peers.environment import LLAMA, OPENVINO, PEFT, TRANSFORMERS, VLLM, Environment, PeerError, prepare
from benchmarks.peers.worker import Worker

__all__ = ["LLAMA", "OPENVINO", "PEFT", "TRANSFORMERS", "VLLM", "Environment", "PeerError", "Worker", "prepare"]
