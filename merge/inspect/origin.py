"""How an expert was made, in words."""

from collections.abc import Mapping

from merge.wording import counted

_FORMS = {"sparse": "sparse", "low_rank": "low-rank", "both": "low-rank + sparse", "none": "norms only"}

_ENTRIES = {
    "magnitude": "largest changes of the fine-tune",
    "residual": "largest differences from the fine-tune",
    "activation": "entries fitted to prompts",
}

_DIRECTIONS = {"residual": "fitted to the weights", "activation": "fitted to prompts"}


def form_in_words(form: str) -> str:
    """A form of `ExpertSummary` as people read it."""
    return _FORMS[form]


def origin(metadata: Mapping[str, str]) -> str:
    """How an expert was made, from the metadata of its file.

    Args:
        metadata: as `merge.experts` writes it. Keys and values of other programs are returned unchanged.
    """
    if metadata.get("form") == "lora":
        return "the fine-tune's LoRA, unchanged"
    selection = metadata.get("selection", "")
    distilled = f"distilled for {counted(int(steps), 'step')}" if (steps := _steps(metadata)) else ""
    if selection == "whole":
        return f"the fine-tune's LoRA, rounded to {metadata.get('storage', 'bf16')}"
    if selection == "distilled":
        return ", ".join(filter(None, ("the fine-tune's LoRA", distilled)))
    if "budget" in metadata and selection in _DIRECTIONS:
        return ", ".join(filter(None, (_DIRECTIONS[selection], distilled, f"budget {_percent(metadata['budget'])}")))
    if "values" in metadata and selection in _ENTRIES:
        factor = f"times {metadata['factor']}" if "factor" in metadata else ""
        return ", ".join(filter(None, (_ENTRIES[selection], factor, distilled)))
    return ", ".join(f"{key}: {value}" for key, value in sorted(metadata.items())) or "not recorded"


def _steps(metadata: Mapping[str, str]) -> str:
    steps = metadata.get("distill", "")
    return steps if steps.isdigit() and steps != "0" else ""


def _percent(budget: str) -> str:
    """1.000% as 1 %."""
    number, sign, rest = budget.partition("%")
    try:
        return f"{float(number):g} %" if sign and not rest else budget
    except ValueError:
        return budget
