"""Does a fine-tune begin, end and sample its texts as the base does? If not, its expert keeps its own way."""

from collections.abc import Mapping

from merge.bundle import BundleError, end_tokens, own_settings, read_template, sampling_defaults
from merge.check.finding import Finding, errors, warnings
from merge.checkpoint import Checkpoint

KEPT = "requests of this expert follow its own"


def check_generation(model: Checkpoint, subject: str) -> list[Finding]:
    """Report end tokens that are not token ids of the model, and a chat template that cannot be read."""
    try:
        end_tokens(model.path)
        read_template(model.path)
    except BundleError as error:
        return errors(subject, [str(error)])
    return []


def compare_generation(source: Checkpoint, fine_tune: Checkpoint, subject: str) -> list[Finding]:
    """Compare the tokens that end a text, the chat templates and the sampling defaults.

    Args:
        source: the model whose settings the backbone gets.
        fine_tune: a full checkpoint, or an adapter on one.
        subject: what the findings are about.
    """
    try:
        ours, usual = end_tokens(source.path), sampling_defaults(source.path) or {}
    except BundleError:
        return []  # reported for the model that it belongs to
    try:
        own = own_settings(source.path, *fine_tune.directories)
    except BundleError as error:
        return errors(subject, [str(error)])
    texts = []
    if own.end_tokens is not None:
        texts.append(f"its texts end with {_tokens(own.end_tokens)}, the backbone's with {_tokens(ours)}")
    if own.chat_template is not None:
        texts.append("its chat template differs from the base's")
    if own.sampling is not None:
        texts.append(f"generation_config.json differs: {_changed(own.sampling, usual)}")
    return warnings(subject, [f"{fine_tune.path}: {text}: {KEPT}" for text in texts])


def _changed(own: Mapping[str, float], usual: Mapping[str, float]) -> str:
    names = [name for name in sorted({*own, *usual}) if own.get(name) != usual.get(name)]
    return ", ".join(f"{name} {own.get(name)!r} (the backbone's: {usual.get(name)!r})" for name in names)


def _tokens(tokens: tuple[int, ...]) -> str:
    if not tokens:
        return "no token"
    return f"token{'s' if len(tokens) > 1 else ''} {', '.join(map(str, sorted(tokens)))}"
