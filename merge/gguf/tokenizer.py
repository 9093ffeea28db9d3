"""The tokenizer of a GGUF file's model."""

import shutil
from pathlib import Path

from transformers import AutoTokenizer

from merge.checkpoint import CheckpointError
from merge.gguf.metadata import Metadata

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
"""Files that are copied from the file's folder if it contains tokenizer.json."""


def write_tokenizer(metadata: Metadata, target: Path) -> None:
    """Write the tokenizer to a model directory: the one beside the file, else the one that transformers makes of it.

    Nothing is written if the file has no vocabulary.

    Raises:
        CheckpointError: transformers cannot convert the vocabulary.
    """
    folder = metadata.file.absolute().parent
    if (folder / "tokenizer.json").is_file():
        for name in FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
        return
    if "tokenizer.ggml.tokens" not in metadata.values:
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), gguf_file=metadata.file.name, local_files_only=True, trust_remote_code=False
        )
        tokenizer.save_pretrained(target)
    except (OSError, ValueError, KeyError, NotImplementedError, AttributeError, TypeError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{metadata.file} has a tokenizer that transformers cannot convert ({line}): put the model's "
            "tokenizer.json into the same folder"
        ) from error
