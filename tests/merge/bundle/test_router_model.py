import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from merge.bundle import BundleError, Featurizer, RouterModel, load_router, save_router


def make_router(experts: int = 3, bits: int = 10) -> RouterModel:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(experts, 1 << bits)).astype(np.float16).astype(np.float32)
    return RouterModel(
        names=tuple(f"task{i}" for i in range(experts)),
        weight=weight,
        bias=rng.normal(size=experts).astype(np.float32),
        offset=0.25,
        temperature=0.5,
        threshold=0.4,
        featurizer=Featurizer(bits=bits),
    )


def slow_features(text: str, featurizer: Featurizer) -> np.ndarray:
    """The definition, one n-gram at a time, in Python's integers."""
    data = bytes(ord("0") if 48 <= b <= 57 else b for b in f" {' '.join(text.lower().split())} ".encode())
    counts: dict[int, int] = {}
    for length in range(featurizer.shortest, featurizer.longest + 1):
        for start in range(len(data) - length + 1):
            value = 0
            for byte in data[start : start + length]:
                value = (value * 0x01000193 + byte) % 2**32
            bucket = (((value ^ (value >> 15) ^ length) * 0x9E3779B1) % 2**32) >> (32 - featurizer.bits)
            counts[bucket] = counts.get(bucket, 0) + 1
    out = np.zeros(featurizer.size)
    for bucket, count in counts.items():
        out[bucket] = 1 + np.log(count)
    return out / np.linalg.norm(out)


@pytest.mark.parametrize("text", ["a", "ab", "Write 1987 in Roman numerals.", "žluťoučký kůň 日本", "aaaa " * 40])
def test_features_follow_their_definition(text: str) -> None:
    featurizer = Featurizer(bits=10)
    np.testing.assert_allclose(featurizer.features(text), slow_features(text, featurizer), atol=1e-6)


def test_features_ignore_case_space_and_which_digit() -> None:
    featurizer = Featurizer()
    np.testing.assert_array_equal(
        featurizer.features("Write 1987  in ROMAN\nnumerals"), featurizer.features("write 2024 in roman numerals")
    )


def test_empty_and_long_texts() -> None:
    featurizer = Featurizer(window=64)
    assert not featurizer.features("").any()
    long = "start " + "x" * 1000 + " end"
    assert np.linalg.norm(featurizer.features(long)) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_array_equal(featurizer.features(long), featurizer.features("start " + "x" * 5000 + " end"))


def test_probabilities_are_a_softmax_with_none() -> None:
    model = make_router()
    text = "sort the letters"
    scores = model.weight @ model.features(text) + model.bias
    logits = np.append((scores - model.offset) / model.temperature, 0.0)
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(model.probabilities(text), expected[:-1], rtol=1e-6)


def test_extreme_scores_do_not_overflow() -> None:
    sharp = replace(make_router(), temperature=1e-4)
    assert np.isfinite(sharp.probabilities("hello there")).all()


def test_round_trip(tmp_path: Path) -> None:
    model = make_router()
    save_router(tmp_path / "router", model)
    loaded = load_router(tmp_path / "router")
    assert (loaded.names, loaded.threshold, loaded.featurizer) == (model.names, model.threshold, model.featurizer)
    np.testing.assert_array_equal(loaded.probabilities("reverse me"), model.probabilities("reverse me"))


def test_unreadable_routers_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no readable router"):
        load_router(tmp_path)
    save_router(tmp_path, make_router())
    settings = json.loads((tmp_path / "router.json").read_text())
    (tmp_path / "router.json").write_text(json.dumps(settings | {"names": ["only one"]}))
    with pytest.raises(BundleError, match="1 names by 1024 features"):
        load_router(tmp_path)
    (tmp_path / "router.json").write_text(json.dumps(settings | {"format_version": 7}))
    with pytest.raises(BundleError, match="router format 7"):
        load_router(tmp_path)


def test_scores_are_those_of_all_features() -> None:
    """Only the features that a text has are read; the others are 0."""
    model, text = make_router(), "sort the letters"
    buckets, values = model.featurizer.nonzero(text)
    assert 0 < len(buckets) < 100
    np.testing.assert_array_equal(model.features(text)[buckets], values)
    logits = (model.weight @ model.features(text) + model.bias - model.offset) / model.temperature
    expected = np.exp(logits) / (1 + np.exp(logits).sum())
    np.testing.assert_allclose(model.probabilities(text), expected, rtol=1e-5)
    assert model.probabilities("").shape == (3,)


def test_the_columns_of_a_feature_lie_together(tmp_path: Path) -> None:
    """A prompt reads some 200 columns of 16,384: they must not be spread over all rows."""
    save_router(tmp_path / "router", make_router())
    assert load_router(tmp_path / "router").weight.flags.f_contiguous
    assert make_router().weight.flags.f_contiguous
