"""Does a fine-tune read text as the base does? The backbone gets the base's tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge.bundle import BundleError, end_tokens, read_tokenizer
from merge.check.finding import Finding, errors, warnings
from merge.check.generation import END_ADVICE
from merge.checkpoint import Checkpoint, CheckpointError, read_json
from merge.wording import counted

SHOWN = 3
"""Tokens named in a message."""

OTHER_FILES = ("tokenizer.model", "spiece.model", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model")
"""Vocabularies of tokenizers that have no tokenizer.json."""


def compare_tokenizers(base: Checkpoint, fine_tune: Checkpoint, subject: str) -> list[Finding]:
    """Compare vocabularies, how text is split, added tokens and chat templates.

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
    found += warnings(subject, _unheard_ends(base.path, fine_tune.path, other))
    if _template(base.path) != _template(fine_tune.path):
        text = f"{fine_tune.path}: the chat template differs from the base's, which the backbone gets"
        found += warnings(subject, [text])
    return found


def _tokenizer(path: Path) -> dict[str, Any] | None:
    file = path / "tokenizer.json"
    return read_json(file) if file.is_file() else None


def _vocabulary(path: Path, tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token → id. Where a file gives an added token another id than the library does, the file's counts."""
    found = read_tokenizer(path).get_vocab(with_added_tokens=True)
    config = path / "tokenizer_config.json"
    decoder = read_json(config).get("added_tokens_decoder") if config.is_file() else None
    found.update({entry["content"]: int(number) for number, entry in (decoder or {}).items()})
    found.update({entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []})
    return found


def _unheard_ends(base: Path, fine_tune: Path, vocabulary: Mapping[str, int]) -> list[str]:
    """The token that ends a text by the fine-tune's tokenizer, where it ends none of the backbone's."""
    config = fine_tune / "tokenizer_config.json"
    token = read_json(config).get("eos_token") if config.is_file() else None
    token = token.get("content") if isinstance(token, dict) else token
    try:
        if not isinstance(token, str) or token not in vocabulary or vocabulary[token] in end_tokens(base):
            return []
        if vocabulary[token] in end_tokens(fine_tune):
            return []  # compare_generation tells it
    except BundleError:
        return []  # reported for the model that it belongs to
    return [
        f"{config}: its tokenizer ends texts with {token!r} ({vocabulary[token]}), the backbone does not: this "
        f"expert's replies may never stop; {END_ADVICE}"
    ]


def _part(tokenizer: Mapping[str, Any], key: str) -> Any:
    if key != "merges":
        return tokenizer.get(key)
    merges = (tokenizer.get("model") or {}).get("merges") or []
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _template(path: Path) -> str | None:
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    config = path / "tokenizer_config.json"
    template = read_json(config).get("chat_template") if config.is_file() else None
    return template.strip() if isinstance(template, str) else None


def _other_files(base: Path, fine_tune: Path) -> list[str]:
    return [
        f"{fine_tune / name} differs from the base's: the same ids for the same tokens are needed"
        for name in OTHER_FILES
        if (base / name).is_file()
        and (fine_tune / name).is_file()
        and (base / name).read_bytes() != (fine_tune / name).read_bytes()
    ]
