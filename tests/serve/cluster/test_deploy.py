"""Two engine replicas on one machine: what they say, what a lost one costs, and how a bundle is replaced."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from merge.bundle import backbone_digest, write_expert
from tests.serve.api.bundles import TOPICS, write_speaking_bundle
from tests.serve.api.fakes import byte_text
from tests.serve.conftest import TinyBundle, random_expert, with_expert

pytest.importorskip("ray", reason="needs the extra ray")

from tests.serve.cluster.deployed import COMMAND, ENVIRONMENT, Deployed, engines, listening, samples, wait_for

TOKENS = 30
LONG = {"model": "sql", "prompt": "x", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}


def ask(url: str, stream: bool) -> str:
    """What became of a request: "whole", "refused" with a proper 503, "broken" with an error event, or what it was."""
    body = {**LONG, "stream": stream}
    with httpx.Client(timeout=120, verify=False) as http:  # it would read the system's certificates for each request
        if not stream:
            reply = http.post(f"{url}/v1/completions", json=body)
            if reply.status_code == 200:
                return "whole" if reply.json()["usage"]["completion_tokens"] == TOKENS else reply.text
            error = reply.json()["error"]
            return "refused" if (reply.status_code, error["type"]) == (503, "service_unavailable") else reply.text
        with http.stream("POST", f"{url}/v1/completions", json=body) as reply:
            events = [line[6:] for line in reply.iter_lines() if line.startswith("data: ")]
    if reply.status_code != 200:
        return "refused" if reply.status_code == 503 else str(reply.status_code)
    if events[-1] != "[DONE]":
        return f"cut off after {len(events)} events"
    last = json.loads(events[-2])
    if "error" in last:
        return "broken" if last["error"]["code"] == "engine_dead" else events[-2]
    return "whole" if last["choices"][0]["finish_reason"] == "length" else events[-2]


@contextmanager
def load(url: str, clients: int, pause: float = 0.2) -> Iterator[list[str]]:
    """Clients that send one request after another while the block runs, every second client streams.

    Args:
        url: the server.
        clients: their number.
        pause: seconds between two requests of a client. Without one they would take the processors from what starts.

    Yields:
        What became of each request, complete after the block.
    """
    stop, outcomes = threading.Event(), list[str]()

    def client(number: int) -> None:
        while not stop.is_set():
            outcomes.append(ask(url, stream=number % 2 == 0))
            stop.wait(pause)

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client, number) for number in range(clients)]
        try:
            yield outcomes
        finally:
            stop.set()
    for future in running:
        future.result()


def test_each_replica_is_scraped_under_its_name(deployment: Deployed):
    url = deployment.url
    for _ in range(8):
        assert ask(url, stream=False) == "whole"
    found, names = samples(url), engines(url)
    assert len(names) == 2
    assert names == set(deployment.processes())
    assert sum(found["overtone_expert_requests_total", "sql"].values()) >= 8
    assert found["overtone_http_requests_total", "/v1/completions", "POST", "200"]["ingress"] >= 8
    assert {"ingress", *names} == set(found["process_resident_memory_bytes",])


def test_only_replicas_listen_beyond_the_loopback(deployment: Deployed):
    """Each has a port for Ray Serve's own calls, whose address is written down in Ray; it asks for Ray's token."""
    found = listening(deployment.process.pid)
    assert ("127.0.0.1", int(deployment.url.rpartition(":")[2])) in found
    beyond = [address for address, _ in found if address not in {"127.0.0.1", "::1"}]
    assert len(beyond) <= 3 < len(found) - len(beyond)


def test_a_structure_is_kept_by_the_replicas(deployment: Deployed):
    pytest.importorskip("llguidance")
    body = {**LONG, "ignore_eos": False, "structured_outputs": {"choice": ["yes", "no"]}}
    reply = httpx.post(f"{deployment.url}/v1/completions", json=body, timeout=60).json()
    assert reply["choices"][0]["text"] in {"yes", "no"}


def test_a_request_is_one_trace_from_the_ingress_to_its_engine(deployment: Deployed):
    trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    body = {**LONG, "model": "auto", "prompt": TOPICS["sql"]}
    headers = {"traceparent": f"00-{trace}-{caller}-01"}
    assert httpx.post(f"{deployment.url}/v1/completions", json=body, headers=headers, timeout=60).status_code == 200
    names = {"POST /v1/completions", "route", "queue", "prefill", "decode"}
    wait_for(lambda: names <= set(deployment.traces.spans(trace)), "spans are missing")
    found = deployment.traces.spans(trace)
    root = found.pop("POST /v1/completions")
    assert root.parent_span_id.hex() == caller
    assert {span.parent_span_id for span in found.values()} == {root.span_id}


def test_a_new_expert_reaches_all_replicas_and_leaves_them(deployment: Deployed, speaker: TinyBundle):
    url, directory = deployment.url, speaker.bundle.path.parent / "more-experts"
    admin = {"Authorization": "Bearer root"}

    def write(seed: int) -> str:
        """An expert's file; what it says."""
        expert = random_expert(speaker.model, backbone_digest(speaker.bundle.backbone_dir), "maths", seed)
        (directory / "maths.safetensors").unlink(missing_ok=True)
        write_expert(directory / "maths.safetensors", expert)
        alone = TinyBundle(speaker.bundle, with_expert(speaker.model, [(expert, 1.0)]))
        return byte_text(alone.greedy(b"x", 8))

    def said(_: object = None) -> str:
        body = {"model": "maths", "prompt": "x", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        return httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]

    def answered() -> dict[str, float]:
        """Requests for it, by replica."""
        return samples(url).get(("overtone_expert_requests_total", "maths"), {})

    for change, seed in (("load", 7), ("reload", 8)):
        text, before = write(seed), answered()
        body = {"name": "maths"} | ({"path": "maths.safetensors"} if change == "load" else {})
        assert httpx.post(f"{url}/v1/experts/{change}", json=body, headers=admin, timeout=60).status_code == 200
        with ThreadPoolExecutor(8) as pool:
            for _ in range(20):
                assert set(pool.map(said, range(16))) == {text}
                if sum(count > before.get(name, 0.0) for name, count in answered().items()) == 2:
                    break
            else:
                pytest.fail("all requests went to one replica")
    assert httpx.post(f"{url}/v1/experts/unload", json={"name": "maths"}, headers=admin).status_code == 200
    reply = httpx.post(f"{url}/v1/completions", json={"model": "maths", "prompt": "x"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    wait_for(lambda: not any(samples(url).get(("overtone_expert_resident", "maths", "device"), {}).values()), "held")


def test_engines_come_under_load_and_go_after_it(deployment: Deployed, speaker: TinyBundle):
    """Beside the other application, on the same Ray, with one or two engines."""
    program = f"""if True:
        import ray
        from ray import serve
        from serve.cluster.app import application
        from serve.cluster.deployment import Deployment
        ray.init(address={deployment.address!r}, log_to_driver=False)
        settings = {{"bundle": {str(speaker.bundle.path)!r}, "engine": {{"max_num_seqs": 2, "kv_cache_bytes": 2**24}}}}
        size = {{"replicas": 1, "max_replicas": 2, "upscale_delay": 1, "downscale_delay": 1, "cpus": 0}}
        app = application(Deployment.model_validate({{"settings": settings, **size}}))
        serve.run(app, name="scaled", route_prefix="/scaled")
    """
    environment = {**ENVIRONMENT, "RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    subprocess.run([sys.executable, "-c", program], env=environment, timeout=100, check=True, capture_output=True)
    url = f"{deployment.url}/scaled"
    assert len(engines(url)) == 1
    with load(url, clients=6, pause=0.05) as outcomes:
        wait_for(lambda: len(engines(url)) == 2, "no engine was added")
    wait_for(lambda: len(engines(url)) == 1, "none was removed")
    assert set(outcomes) == {"whole"}
    assert ask(url, stream=True) == "whole"


def test_a_lost_replica_loses_no_request_silently_and_comes_back(deployment: Deployed):
    url = deployment.url
    before = engines(url)
    victim = sorted(before)[0]
    busy = "overtone_num_requests_running"
    with load(url, clients=6) as outcomes:
        wait_for(lambda: samples(url)[busy,].get(victim, 0) > 0, "the replica got no request")
        os.kill(deployment.processes()[victim], signal.SIGKILL)
        wait_for(lambda: len(engines(url) - {victim}) == 2, "no replica came in its place")
    assert set(outcomes) <= {"whole", "refused", "broken"}
    assert outcomes.count("whole") > len(outcomes) / 2
    assert victim not in engines(url)
    assert ask(url, stream=True) == "whole"


def test_a_new_bundle_takes_over_without_an_error(deployment: Deployed, tmp_path: Path):
    """The last but one of this deployment's tests: afterwards it serves another bundle."""
    other = write_speaking_bundle(tmp_path / "other", name="successor").bundle.path
    url = deployment.url
    before = engines(url)
    update = [*COMMAND, str(other), "--address", deployment.address, "--kv-cache-bytes", "16MiB"]
    update += ["--cpus-per-replica", "0.5"]
    with load(url, clients=3) as outcomes:
        ended = subprocess.run(update, capture_output=True, text=True, env=ENVIRONMENT, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    assert set(outcomes) == {"whole"}
    assert not before & engines(url)
    assert "successor" in [card["id"] for card in httpx.get(f"{url}/v1/models").json()["data"]]


def test_sigterm_refuses_new_requests_until_nothing_listens(deployment: Deployed):
    """The last of this deployment's tests."""
    answered = threading.Semaphore(0)

    def until_nothing_listens(stream: bool) -> list[str]:
        outcomes = []
        while True:
            try:
                outcomes.append(ask(deployment.url, stream))
            except httpx.TransportError:
                return outcomes
            answered.release()

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(until_nothing_listens, number % 2 == 0) for number in range(4)]
        for _ in range(8):
            answered.acquire()
        deployment.process.send_signal(signal.SIGTERM)
        outcomes = [outcome for future in running for outcome in future.result()]
    assert set(outcomes) == {"whole", "refused"}
    assert deployment.process.wait(100) == 0
