import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from merge.bundle import BundleError, Featurizer, RouterModel, load_router, save_router
from merge.bundle.head_matrix import EXACT, HeadMatrix


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


def dense(featurizer: Featurizer, text: str) -> np.ndarray:
    out = np.zeros(featurizer.size)
    ((places, values),) = featurizer.rows([text])
    out[places] = values
    return out


def slow_features(text: str, featurizer: Featurizer) -> np.ndarray:
    """The definition, one n-gram at a time, in Python's integers."""
    data = bytes(ord("0") if 48 <= b <= 57 else b for b in f" {' '.join(text.lower().split())} ".encode())
    parts = [slow_byte_ngrams(data, featurizer)]
    if featurizer.words:
        parts.append(slow_word_ngrams(data, featurizer))
    return sum(part / max(np.linalg.norm(part), 1e-9) for part in parts) / np.sqrt(len(parts))


def slow_word_ngrams(data: bytes, featurizer: Featurizer) -> np.ndarray:
    words = [
        sum(byte * pow(0x01000193, place, 2**32) for place, byte in enumerate(word))
        for word in re.findall(rb"[0-9A-Za-z_\x80-\xff]+", data)
    ]
    counts: dict[int, int] = {}
    for length in range(1, featurizer.words + 1):
        for start in range(len(words) - length + 1):
            value = 0
            for word in words[start : start + length]:
                value = (value * 0x9E3779B1 + word) % 2**32
            bucket = (((value ^ (value >> 15) ^ (64 + length)) * 0x9E3779B1) % 2**32) >> (32 - featurizer.bits)
            counts[bucket] = counts.get(bucket, 0) + 1
    return by_bucket(counts, featurizer)


def slow_byte_ngrams(data: bytes, featurizer: Featurizer) -> np.ndarray:
    counts: dict[int, int] = {}
    for length in range(featurizer.shortest, featurizer.longest + 1):
        for start in range(len(data) - length + 1):
            if featurizer.words and b" " in data[start + 1 : start + length - 1]:
                continue
            value = 0
            for byte in data[start : start + length]:
                value = (value * 0x01000193 + byte) % 2**32
            bucket = (((value ^ (value >> 15) ^ length) * 0x9E3779B1) % 2**32) >> (32 - featurizer.bits)
            counts[bucket] = counts.get(bucket, 0) + 1
    return by_bucket(counts, featurizer)


def by_bucket(counts: dict[int, int], featurizer: Featurizer) -> np.ndarray:
    out = np.zeros(featurizer.size)
    for bucket, count in counts.items():
        out[bucket] = 1 + np.log(count)
    return out


@pytest.mark.parametrize("words", [0, 1, 2])
@pytest.mark.parametrize("text", ["a", "ab", "Write 1987 in Roman numerals.", "žluťoučký kůň 日本", "aaaa " * 40, "?!"])
def test_features_follow_their_definition(text: str, words: int) -> None:
    featurizer = Featurizer(bits=10, words=words)
    np.testing.assert_allclose(dense(featurizer, text), slow_features(text, featurizer), atol=1e-6)


def test_features_ignore_case_space_and_which_digit() -> None:
    featurizer = Featurizer()
    np.testing.assert_array_equal(
        dense(featurizer, "Write 1987  in ROMAN\nnumerals"), dense(featurizer, "write 2024 in roman numerals")
    )


def test_empty_and_long_texts() -> None:
    featurizer = Featurizer(window=64)
    assert not dense(featurizer, "").any()
    long = "start " + "x" * 1000 + " end"
    assert np.linalg.norm(dense(featurizer, long)) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_array_equal(dense(featurizer, long), dense(featurizer, "start " + "x" * 5000 + " end"))


def test_probabilities_are_a_softmax_with_none() -> None:
    model = make_router()
    text = "sort the letters"
    scores = model.weight @ dense(model.featurizer, text) + model.bias
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


def test_routers_with_word_features_say_so_in_their_format(tmp_path: Path) -> None:
    """Versions that know nothing of word n-grams refuse them; routers from before are read as they were."""
    model = make_router()
    save_router(tmp_path / "old", model)
    settings = json.loads((tmp_path / "old" / "router.json").read_text())
    assert settings["format_version"] == 1
    assert settings["featurizer"] == {"bits": 10, "shortest": 3, "longest": 5, "window": 8192}
    model = replace(model, featurizer=Featurizer(bits=10, words=2))
    save_router(tmp_path / "new", model)
    assert json.loads((tmp_path / "new" / "router.json").read_text())["format_version"] == 2
    loaded = load_router(tmp_path / "new")
    assert loaded.featurizer == model.featurizer
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
    ((buckets, values),) = model.featurizer.rows([text])
    assert 0 < len(buckets) < 100
    np.testing.assert_array_equal(dense(model.featurizer, text)[buckets], values)
    logits = (model.weight @ dense(model.featurizer, text) + model.bias - model.offset) / model.temperature
    expected = np.exp(logits) / (1 + np.exp(logits).sum())
    np.testing.assert_allclose(model.probabilities(text), expected, rtol=1e-5)
    assert model.probabilities("").shape == (3,)


def test_many_experts_are_scored_by_eight_bits() -> None:
    """A score moves by about a thousandth of the largest weight."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(EXACT + 1, 512)).astype(np.float16)
    bias = rng.normal(size=EXACT + 1).astype(np.float32)
    places = np.sort(rng.choice(512, 60, replace=False))
    values = np.full(60, 60**-0.5, dtype=np.float32)
    expected = values @ weight.astype(np.float32).T[places] + bias
    found = HeadMatrix(weight, bias).scores(places, values).numpy()
    np.testing.assert_allclose(found, expected, atol=0.04)
    assert np.abs(found - expected).mean() < 0.01
    none = HeadMatrix(weight, bias).scores(places[:0], values[:0]).numpy()
    np.testing.assert_array_equal(none, bias)
    few = HeadMatrix(weight[:5], bias[:5]).scores(places, values).numpy()
    np.testing.assert_allclose(few, expected[:5], rtol=1e-5, atol=1e-6)
