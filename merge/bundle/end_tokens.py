"""Tokens that end a text, as a model directory names them."""

import json
from pathlib import Path
from typing import Any

from merge.bundle.errors import BundleError


def end_tokens(directory: Path) -> tuple[int, ...]:
    """The ids that generation_config.json names or, if it names none, config.json.

    Returns:
        The ids in the file's order; empty if neither file names any.

    Raises:
        BundleError: a file is not a JSON object, or `eos_token_id` is not a token id below `vocab_size` or a list of
            such ids.
    """
    config = read_object(directory / "config.json")
    for file, document in (
        ("generation_config.json", read_object(directory / "generation_config.json")),
        ("config.json", config),
    ):
        given = document.get("eos_token_id")
        if given is not None and given != []:
            return checked_ids(given, config.get("vocab_size"), str(directory / file))
    return ()


def checked_ids(given: Any, vocab_size: Any, file: str) -> tuple[int, ...]:
    """`eos_token_id`, one or a list, as read from a file of a model with `vocab_size` tokens; None: unknown.

    Raises:
        BundleError: it is not made of token ids.
    """
    found = given if isinstance(given, list) else [given]
    if not all(type(token) is int and token >= 0 for token in found):
        raise BundleError(f"{file}: eos_token_id is {given!r}; it must be a token id or a list of token ids")
    beyond = [token for token in found if isinstance(vocab_size, int) and token >= vocab_size]
    if beyond:
        raise BundleError(
            f"{file}: eos_token_id names {beyond[0]}, but the model has {vocab_size} tokens and can never produce it"
        )
    return tuple(found)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file does not exist.

    Raises:
        BundleError: the file cannot be read, or holds something else.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise BundleError(f"{path} must hold a JSON object, not a {type(document).__name__}")
    return document
