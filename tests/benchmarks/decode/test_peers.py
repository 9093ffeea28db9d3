import sys
from pathlib import Path

import pytest

from benchmarks.decode import peers
from benchmarks.decode.cases import Case
from benchmarks.peers import PeerError

WORKER = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    count, prompts = asked["tokens"], asked["prompts"]
    print(json.dumps({"arrivals": [[1.0 + sum(row) + n for n in range(count)] for row in prompts]}), flush=True)
"""


def test_an_unknown_peer_is_named_beside_those_there_are(tmp_path):
    with (
        pytest.raises(PeerError, match=r"no peer 'nobody'; there are: vllm, .*llama\.cpp"),
        peers.running(["peft", "nobody"], tmp_path, tmp_path, 10, 10, lambda _: None),
    ):
        pass


def test_a_peer_without_adapters_takes_the_backbone_alone():
    assert peers.takes("llama.cpp", Case("b", (None, None), 4))
    assert not peers.takes("llama.cpp", Case("m", (None, "e0"), 4))
    assert peers.takes("peft", Case("m", (None, "e0"), 4))


def test_sampled_tokens_are_asked_of_the_engine_alone():
    case = Case("sampled/1", (None,), 4, sampled=True)
    assert peers.takes("overtone", case)
    assert not peers.takes("vllm", case)


@pytest.fixture
def llama(monkeypatch, tmp_path):
    """Starts llama.cpp as a worker that takes commands."""
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    monkeypatch.setattr(peers, "prepare", lambda _environment, _say: Path(sys.executable))

    def start(script, said=None):
        (tmp_path / "llama_worker.py").write_text(script)
        say = (lambda _: None) if said is None else said.append
        return peers.running(["llama.cpp"], tmp_path, tmp_path, 1000, 10, say)

    return start


def test_a_peer_that_ends_a_request_early_is_an_error(llama):
    early = WORKER.replace("range(count)", "range(count - 1)")
    with llama(early) as found:
        assert found.run("llama.cpp", Case("b", (None, None), 4), 3) is None
    assert found.left_out == {"llama.cpp": "llama.cpp gave [2, 2] tokens, but 2 requests asked for 3 each"}


def test_a_peer_is_asked_other_prompts_each_time_and_tells_when_tokens_came(llama):
    case, said = Case("b", (None, None), 4), list[str]()
    with llama(WORKER, said) as found:
        one, other = (found.run("llama.cpp", case, 3) for _ in range(2))
    assert said == ["starting llama.cpp"]
    assert [len(times) for times in one.arrivals] == [3, 3]
    assert one.arrivals[0][0] == 1.0 + sum(case.prompts(1000, 0)[0])
    assert other.arrivals[1][2] == 3.0 + sum(case.prompts(1000, 1)[1])


def test_a_peer_that_cannot_be_started_or_ends_is_left_out(llama):
    said = list[str]()
    with llama("raise SystemExit('no such instruction')", said) as found:
        assert found.names == []
    assert found.report() == {"left_out": {"llama.cpp": "llama.cpp ended with status 1: no such instruction"}}
    assert said[-1] == "llama.cpp is left out: llama.cpp ended with status 1: no such instruction"
    case = Case("b", (None,), 4)
    with llama(WORKER.replace("asked = ", "import os; os.kill(os.getpid(), 4); asked = ")) as found:
        assert found.run("llama.cpp", case, 3) is None
        assert found.names == []
    assert found.left_out["llama.cpp"].startswith("llama.cpp ended with status -4")


def test_peers_with_formats_of_few_bits_run_them_beside_their_own():
    assert peers.with_quantised(["vllm"]) == ["vllm"]
    assert peers.with_quantised(["openvino"]) == ["openvino", "openvino-int8", "openvino-int4"]
    assert peers.with_quantised(["llama.cpp"])[1:] == ["llama.cpp-Q8_0", "llama.cpp-Q4_0", "llama.cpp-Q4_K_M"]


def test_a_worker_is_told_its_format(monkeypatch, tmp_path):
    told = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    count = json.loads(line)["tokens"]
    print(json.dumps({"arrivals": [[float(sys.argv[-1].removeprefix(PREFIX))] * count]}), flush=True)
"""
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    monkeypatch.setattr(peers, "prepare", lambda _environment, _say: Path(sys.executable))
    (tmp_path / "openvino_worker.py").write_text(told.replace("PREFIX", "'int'"))
    (tmp_path / "llama_worker.py").write_text(told.replace("PREFIX", "'Q8_'"))
    names = ["openvino-int8", "openvino-int4", "llama.cpp-Q8_0"]
    with peers.running(names, tmp_path, tmp_path, 1000, 10, lambda _: None) as found:
        arrivals = {name: found.run(name, Case("b", (None,), 4), 1).arrivals for name in names}
    assert arrivals == {"openvino-int8": [[8.0]], "openvino-int4": [[4.0]], "llama.cpp-Q8_0": [[0.0]]}
