import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from merge.bundle import BundleError, EncoderFiles, TextEncoder, backbone_encoder
from tests.merge.bundle.encoders import write_encoder

TEXTS = ["write the letters", "lamp", "sort the letters of the river please"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoder(directory: Path) -> TextEncoder:
    return TextEncoder(EncoderFiles.of_model(directory), (1, 2), 32)


def test_vectors_are_the_mean_hidden_states(directory: Path, encoder: TextEncoder) -> None:
    model, tokenizer = AutoModel.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    found = encoder.encode(TEXTS)
    assert found.shape == (3, encoder.size) == (3, 32)
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        expected = [torch.nn.functional.normalize(states[layer][0].mean(0), dim=0) for layer in (1, 2)]
        np.testing.assert_allclose(vector, torch.cat(expected).numpy(), atol=0.05)  # 8-bit weights, bfloat16


def test_a_text_is_read_alike_beside_others(encoder: TextEncoder) -> None:
    np.testing.assert_allclose(encoder.encode(TEXTS)[1:2], encoder.encode(TEXTS[1:2]), atol=0.02)


def test_long_texts_lose_their_middle(encoder: TextEncoder) -> None:
    start, end = "sort the letters of " * 20, " please write it" * 20
    long = [start + "lamp " * count + end for count in (10, 10_000)]
    first, second = encoder.encode(long)
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(encoder.encode([""])).all()


def test_files_give_the_same_encoder(tmp_path: Path, encoder: TextEncoder) -> None:
    assert encoder.files is not None
    encoder.files.save(tmp_path / "encoder")
    files = EncoderFiles.load(tmp_path / "encoder")
    assert files.digest == encoder.digest
    np.testing.assert_array_equal(TextEncoder(files, (1, 2), 32).encode(TEXTS), encoder.encode(TEXTS))


def test_the_first_layers_of_a_backbone(directory: Path, encoder: TextEncoder) -> None:
    shallow = backbone_encoder(directory, (1,), 32)
    assert (shallow.files, shallow.size) == (None, 16)
    np.testing.assert_allclose(shallow.encode(TEXTS), encoder.encode(TEXTS)[:, :16], atol=0.05)


def test_encoders_that_cannot_be_read(tmp_path: Path, directory: Path, encoder: TextEncoder) -> None:
    with pytest.raises(BundleError, match="no tokenizer.json"):
        EncoderFiles.of_model(tmp_path)
    with pytest.raises(BundleError, match="has 2 layers; layer 7 does not exist"):
        EncoderFiles.of_model(directory, 7)
    files = EncoderFiles.of_model(directory)
    with pytest.raises(BundleError, match=r"has 2 layers; it reads \[3\]"):
        TextEncoder(files, (3,), 32)
    with pytest.raises(BundleError, match="4 to 64 tokens of a text; max_tokens is 65"):
        TextEncoder(files, (2,), 65)
    files.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(BundleError, match="encoder is damaged"):
        TextEncoder(EncoderFiles.load(tmp_path), (2,), 32)
    (tmp_path / "config.json").unlink()
    with pytest.raises(BundleError, match="holds no readable encoder"):
        EncoderFiles.load(tmp_path)
