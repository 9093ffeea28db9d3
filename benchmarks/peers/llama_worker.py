"""llama.cpp as a worker: run by its own environment's interpreter, with a model, which it converts first.

Driven through llama.h's own calls, without a server between. Adapters are left out: they are set for a whole context,
so requests for different ones do not share a batch.
"""

import ctypes
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import llama_cpp as llama  # type: ignore[import-not-found]
import numpy as np
import safetensors
from gguf import GGMLQuantizationType, GGUFWriter
from qwen2_gguf import ARCHITECTURE, metadata, tensor_name  # type: ignore[import-not-found]  # beside this file

SEQUENCES = 8

Token = tuple[int, int, int, bool]
"""A token of a batch: its sequence, its position, its id, and whether the next token is needed."""


def convert(model: Path, target: Path) -> None:
    """Write a folder of transformers' as a GGUF file: matrices unchanged, in bfloat16, vectors in float32.

    Vectors are what llama.cpp's own converter makes of them, too. No tokenizer: tokens go in and out as numbers.
    """
    writer = GGUFWriter(target, ARCHITECTURE)
    for key, value in metadata(json.loads((model / "config.json").read_text())).items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    writer.add_tokenizer_model("none")
    for name, tensor in safetensors.deserialize((model / "model.safetensors").read_bytes()):  # type: ignore[no-untyped-call]
        if tensor["dtype"] != "BF16":
            raise ValueError(f"{name} is {tensor['dtype']}, not BF16")
        words = np.frombuffer(tensor["data"], np.uint16).reshape(tensor["shape"])
        if words.ndim == 1:
            writer.add_tensor(tensor_name(name), (words.astype(np.uint32) << 16).view(np.float32))
        else:
            writer.add_tensor(tensor_name(name), words.view(np.uint8), raw_dtype=GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantised(path: Path, format_: str) -> Path:
    """Write the file once more in a format of llama.cpp's, such as Q8_0; rows that do not fit get another."""
    target = path.with_name(f"{format_}.gguf")
    options = llama.llama_model_quantize_default_params()
    options.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{format_}")
    if status := llama.llama_model_quantize(str(path).encode(), str(target).encode(), options):
        raise RuntimeError(f"llama_model_quantize returned {status}")
    path.unlink()
    return target


class Engine:
    """A model and a context for `SEQUENCES` sequences of at most `length` tokens."""

    def __init__(self, path: Path, length: int) -> None:
        settings = llama.llama_model_default_params()
        self._model = llama.llama_model_load_from_file(str(path).encode(), settings)
        options = llama.llama_context_default_params()
        options.n_ctx = options.n_batch = SEQUENCES * length
        options.n_seq_max = SEQUENCES
        options.n_threads = options.n_threads_batch = len(os.sched_getaffinity(0))
        self._context = self._model and llama.llama_init_from_model(self._model, options)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._batch = llama.llama_batch_init(SEQUENCES * length, 0, 1)

    def forget(self) -> None:
        """Empty the KV cache."""
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)

    def logits(self, tokens: list[Token]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Compute tokens in one batch: a row [vocabulary] for each that asks for it."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (sequence, position, token, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if status := llama.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {status}")
        shape = sum(wanted for *_, wanted in tokens), self._vocabulary
        return np.ctypeslib.as_array(
            ctypes.cast(llama.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float)), shape
        )


def arrivals(engine: Engine, prompts: list[list[int]], tokens: int) -> list[list[float]]:
    """When each greedy token of each prompt came, in seconds; the prompts have one length."""
    engine.forget()
    times: list[float] = []
    start = time.perf_counter()
    step = [
        (number, position, token, position == len(prompt) - 1)
        for number, prompt in enumerate(prompts)
        for position, token in enumerate(prompt)
    ]
    for past in range(len(prompts[0]), len(prompts[0]) + tokens):
        drawn = engine.logits(step).argmax(-1).tolist()
        times.append(time.perf_counter() - start)
        step = [(number, past, token, True) for number, token in enumerate(drawn)]
    return [times] * len(prompts)


def main() -> None:
    """Answer questions until stdin ends."""
    model, length, *format_ = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="overtone-llama-") as folder:
        path = Path(folder) / "model.gguf"
        convert(Path(model), path)
        if format_:
            path = quantised(path, format_[0])
        engine = Engine(path, int(length))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        answer = {"arrivals": arrivals(engine, question["prompts"], question["tokens"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
