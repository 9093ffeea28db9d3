"""Does a fine-tune read text as the base does? The backbone gets the base's tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge.bundle import BundleError, read_tokenizer
from merge.check.finding import Finding, errors, warnings
from merge.checkpoint import Checkpoint, CheckpointError, read_json
from merge.wording import counted

SHOWN = 3
"""Tokens named in a message."""

OTHER_FILES = ("tokenizer.model", "spiece.model", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model")
"""Vocabularies of tokenizers that have no tokenizer.json."""


def compare_tokenizers(base: Checkpoint, fine_tune: Checkpoint, subject: str) -> list[Finding]:
    """Compare vocabularies, how text is split, and added tokens.

    Another id for a token, or another way to split text, is an error: the same row of the embedding would mean two
    things. Tokens that only tokenizer_config.json names count as they do in transformers.
    """
    try:
        ours, theirs = (_tokenizer(checkpoint.path) for checkpoint in (base, fine_tune))
    except CheckpointError as error:
        return errors(subject, error.faults)
    file = fine_tune.path / "tokenizer.json"
    if ours is None or theirs is None:
        return errors(subject, _other_files(base.path, fine_tune.path))
    try:
        one, other = _vocabulary(base.path, ours), _vocabulary(fine_tune.path, theirs)
    except BundleError as error:
        return errors(subject, [str(error)])
    found = []
    moved = sorted(token for token in one.keys() & other.keys() if one[token] != other[token])
    taken = sorted(set(one.values()) & {other[token] for token in other.keys() - one.keys()})
    if moved or taken:
        by_id = {other[token]: token for token in other.keys() - one.keys()}
        names = [f"{token!r} is {other[token]}, in the base {one[token]}" for token in moved[:SHOWN]]
        names += [
            f"id {number} is {by_id[number]!r}, in the base another token" for number in taken[: SHOWN - len(names)]
        ]
        found += errors(
            subject,
            [f"{file}: the vocabulary differs from the base's: {'; '.join(names)}; {len(moved) + len(taken)} in all"],
        )
    more, fewer = other.keys() - one.keys(), one.keys() - other.keys()
    if (more or fewer) and not (moved or taken):
        text = f"{file} has {counted(len(more), 'token')} more and {len(fewer)} fewer than the base's"
        found += warnings(subject, [f"{text}, which the backbone gets"])
    for key, wrong in (("merges", True), ("pre_tokenizer", True), ("normalizer", True), ("post_processor", False)):
        if _part(ours, key) != _part(theirs, key):
            text = f"{file}: {key} differs from the base's: the same text becomes other tokens"
            found += errors(subject, [text]) if wrong else warnings(subject, [f"{text}; the backbone gets the base's"])
    return found


def _tokenizer(path: Path) -> dict[str, Any] | None:
    file = path / "tokenizer.json"
    return read_json(file) if file.is_file() else None


def _vocabulary(path: Path, tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token → id. If a file gives an added token another id than the library does, the file's counts."""
    found = read_tokenizer(path).get_vocab(with_added_tokens=True)
    config = path / "tokenizer_config.json"
    decoder = read_json(config).get("added_tokens_decoder") if config.is_file() else None
    found.update({entry["content"]: int(number) for number, entry in (decoder or {}).items()})
    found.update({entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []})
    return found


def _part(tokenizer: Mapping[str, Any], key: str) -> Any:
    if key != "merges":
        return tokenizer.get(key)
    merges = (tokenizer.get("model") or {}).get("merges") or []
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _other_files(base: Path, fine_tune: Path) -> list[str]:
    return [
        f"{fine_tune / name} differs from the base's: the same ids for the same tokens are needed"
        for name in OTHER_FILES
        if (base / name).is_file()
        and (fine_tune / name).is_file()
        and (base / name).read_bytes() != (fine_tune / name).read_bytes()
    ]
