import sys
from pathlib import Path

import pytest

from benchmarks.decode import peers
from benchmarks.decode.backbones import measure_backbones
from tests.benchmarks.decode.test_model import TINY


@pytest.mark.parametrize(("storage", "kind"), [("int8", "sparse"), ("int4", "low_rank8_int8")])
def test_a_report_has_what_it_promises(tmp_path, storage, kind):
    report = measure_backbones(tmp_path, TINY, storage, [], 2, lambda _: None, kind)
    assert report["experts"] == kind
    assert set(report["backbone_ms"]) == set(report["distinct8"]) == {"bf16", storage}
    assert all(set(found) == {"1", "8"} for found in report["backbone_ms"].values())
    assert set(report["ratio"]) == {"1", "8", "distinct8"}
    assert report["weight_bytes"][storage] < 0.75 * report["weight_bytes"]["bf16"]
    assert report["peers"] == {}
    assert all(found > 0 for found in report["prefill_tokens_per_s"].values())


def test_a_peer_that_ends_is_left_out_of_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    monkeypatch.setattr(peers, "prepare", lambda _environment, _say: Path(sys.executable))
    ready = "print('{\"ready\": true}', flush=True); input(); raise SystemExit('no such instruction')"
    (tmp_path / "openvino_worker.py").write_text(ready)
    report = measure_backbones(tmp_path, TINY, "int8", ["openvino"], 2, lambda _: None)
    assert report["left_out"] == {"openvino": "openvino ended with status 1: no such instruction"}
    assert report["peers"] == {}
    assert set(report["prefill_tokens_per_s"]) == {"bf16", "int8"}


def test_refuses_another_storage(tmp_path):
    with pytest.raises(ValueError, match="storage is 'int2'; it must be one of int8, int4"):
        measure_backbones(tmp_path, TINY, "int2", [], 1, lambda _: None)
    with pytest.raises(ValueError, match="sparse or low_rank8_int8, not lora16"):
        measure_backbones(tmp_path, TINY, "int8", [], 1, lambda _: None, "lora16")
