"""A model directory's tokenizer as transformers reads it, without its Python around it."""

from pathlib import Path

from tokenizers import Tokenizer

from merge.bundle.errors import BundleError


def read_tokenizer(directory: Path) -> Tokenizer:
    """Read tokenizer.json, and add the tokens that only the files beside it name.

    tokenizer_config.json may name tokens in `added_tokens_decoder`, `extra_special_tokens`,
    `additional_special_tokens` and by role (`eos_token`), older models in special_tokens_map.json and
    added_tokens.json. transformers gives each of them an id; tokenizer.json alone would split them.

    Raises:
        BundleError: there is no tokenizer.json, or one of the files cannot be read.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise BundleError(f"{directory} has no tokenizer.json")
    from transformers import PreTrainedTokenizerFast  # takes a second to import; not all that read bundles tokenize

    try:
        loaded = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # the libraries raise bare Exception, JSONDecodeError, TypeError, ...
        raise BundleError(f"{directory} has no readable tokenizer ({_culprit(path)}): {error}") from error
    tokenizer: Tokenizer = loaded.backend_tokenizer
    return tokenizer


def _culprit(path: Path) -> str:
    try:
        Tokenizer.from_file(str(path))
    except Exception:
        return path.name
    return "tokenizer_config.json or another file beside tokenizer.json"
