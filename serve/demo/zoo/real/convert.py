"""GGUF to a Hugging Face directory, in a separate process: `python -m serve.demo.zoo.real.convert FOLDER FILE OUT`."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(folder: Path, file: str, out: Path) -> None:
    """Write the model of a GGUF file with bfloat16 weights, and its tokenizer with the chat template.

    Args:
        folder: the folder of the file.
        file: its name.
        out: a directory that is there.
    """
    # Without dequantize=True transformers keeps the quantized form and refuses to save it.
    quantization = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.bfloat16, quantization_config=quantization
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    if not tokenizer.chat_template:
        raise ValueError(f"{file} has no chat template")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
