"""Does a fine-tune end and sample its texts as the base does? The backbone has one generation_config.json for all."""

from typing import Any

from merge.bundle import BundleError, end_tokens
from merge.check.finding import Finding, errors, warnings
from merge.checkpoint import Checkpoint, read_json

RECORDS = frozenset({"transformers_version", "_from_model_config", "eos_token_id", "pad_token_id", "bos_token_id"})
"""Fields that are compared otherwise, or that no reply depends on."""

END_ADVICE = (
    "name the token in eos_token_id of the base's generation_config.json (in a copy of the base's directory): the "
    "bundle gets that file"
)


def check_end_tokens(model: Checkpoint, subject: str) -> list[Finding]:
    """Report end tokens that are not token ids of the model."""
    try:
        end_tokens(model.path)
    except BundleError as error:
        return errors(subject, [str(error)])
    return []


def compare_generation(source: Checkpoint, fine_tune: Checkpoint, subject: str) -> list[Finding]:
    """Compare the tokens that end a text, and the sampling defaults.

    Args:
        source: the model whose settings the backbone gets.
        fine_tune: a full checkpoint.
        subject: what the findings are about.
    """
    try:
        ours, theirs = set(end_tokens(source.path)), set(end_tokens(fine_tune.path))
    except BundleError:
        return []  # reported for the model that it belongs to
    odd = []
    text = f"{fine_tune.path}: its texts end with {_listed(theirs)}, the backbone's with {_listed(ours)}"
    if theirs - ours:
        odd.append(f"{text}: this expert's replies may never stop; {END_ADVICE}")
    elif theirs and ours - theirs:
        odd.append(f"{text}: this expert's replies may stop early")
    one, other = _fields(source), _fields(fine_tune)
    changed = [key for key in sorted(one | other) if one.get(key) != other.get(key)]
    if changed and other:
        said = ", ".join(f"{key} {other.get(key)!r} (the backbone's: {one.get(key)!r})" for key in changed)
        odd.append(f"{fine_tune.path}: generation_config.json differs: {said}")
    return warnings(subject, odd)


def _fields(model: Checkpoint) -> dict[str, Any]:
    file = model.path / "generation_config.json"
    fields = read_json(file) if file.is_file() else {}
    return {key: value for key, value in fields.items() if key not in RECORDS and value is not None}


def _listed(tokens: set[int]) -> str:
    if not tokens:
        return "no token"
    return f"token{'s' if len(tokens) > 1 else ''} {', '.join(map(str, sorted(tokens)))}"
