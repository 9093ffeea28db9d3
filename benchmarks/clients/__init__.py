"""Independent clients, each from a separate virtual environment, against a real server.

`sdks` lists the libraries, whose calls are in the folder `scripts`; `shapes` sends what other programs send.
`vllm_bench` and `guidellm` let load generators stream replies, `schemathesis` attacks what the OpenAPI document says.
`benchmarks.lm_eval` is another.
"""

from benchmarks.clients.schemathesis import SCHEMATHESIS, attack_document
from benchmarks.clients.vllm_bench import bench_serve

__all__ = ["SCHEMATHESIS", "attack_document", "bench_serve"]
