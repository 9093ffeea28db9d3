"""Whether a merge kept the base's general abilities: what is measured during the merge, and what is reported."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from merge.bundle import read_expert, read_header
from merge.check import Inputs
from merge.check.elsewhere import Elsewhere, ask_elsewhere, shortened
from merge.check.general import GeneralReference, general_reference, too_large
from merge.checkpoint import Checkpoint, CheckpointError
from merge.experts import CalibrationError
from merge.progress import Progress


@dataclass(frozen=True)
class Abilities:
    """The base's general abilities.

    Attributes:
        reference: None if they cannot be measured, or need not be.
        missing: why they cannot, the end of a sentence.
    """

    reference: GeneralReference | None
    missing: str = ""

    def shortened(self) -> "Abilities":
        """What `experts_elsewhere` needs of them."""
        return Abilities(None if self.reference is None else shortened(self.reference), self.missing)


def base_abilities(inputs: Inputs, shown: Progress) -> Abilities:
    """Ask the base general questions, if that takes little time and the replies are useful.

    They are not asked if the backbone is the base, or if the model is large, is not one that transformers runs as a
    causal language model, or has no chat template or no knowledge.
    """
    if inputs.recipe.merge_method == "base":
        return Abilities(None)
    if too_large(inputs.base):
        return Abilities(None, "the model has more than a billion parameters")
    shown.say("base: asking general questions")
    try:
        found = general_reference(inputs.base)
    except (CheckpointError, CalibrationError):
        return Abilities(None, "the base cannot be run as a causal language model")
    return Abilities(found, "" if found else "the base has no chat template, or answers few general questions")


def general_notes(reference: GeneralReference | None, backbone: Checkpoint, shown: Progress) -> list[str]:
    """Compare the backbone with the base on general questions, and warn if it lost abilities.

    Returns:
        What was found, for the bundle's notes.
    """
    if reference is None:
        return []
    found = reference.compare(backbone)
    shown.say(f"backbone: {found.summary()}")
    for concern in found.concerns():
        shown.say(f"warning: backbone: {concern}")
    return [f"backbone: {line}" for line in (found.summary(), *found.concerns())]


def experts_elsewhere(
    inputs: Inputs, abilities: Abilities, backbone: Checkpoint, experts: Path, shown: Progress
) -> dict[str, Elsewhere]:
    """Measure what each expert does to requests of other tasks, and warn if it is far from the base.

    Args:
        inputs: the recipe's.
        abilities: the base's, as `base_abilities` found them: general questions that were asked are not asked again.
        backbone: as it is stored.
        experts: the folder of their files.
        shown: gets figures and warnings.

    Returns:
        By name, without experts that are their fine-tune's whole LoRA; empty if the base has no general abilities
        that could be measured.
    """
    if abilities.missing or too_large(inputs.base):
        return {}
    measured: dict[str, Elsewhere] = {}
    files = {name: experts / f"{name}.safetensors" for name in inputs.fine_tunes}
    cut = {name: file for name, file in files.items() if not _is_whole_lora(read_header(file).metadata)}
    if not cut:
        return {}
    try:
        prompts, _ = inputs.calibration_tokens()
        requests = ask_elsewhere(inputs.base, prompts, abilities.reference)
        if requests is None:
            return {}
        with shown.stage("experts: requests of other tasks", len(cut)) as advance:
            for name, file in cut.items():
                found = requests.measure(read_expert(file), inputs.fine_tunes[name], backbone)
                shown.say(f"expert {name}: {found.summary()}")
                for concern in found.concerns():
                    shown.say(f"warning: expert {name}: {concern}")
                measured[name] = found
                advance()
    except (CheckpointError, CalibrationError):
        return {}
    return measured


def _is_whole_lora(metadata: Mapping[str, str]) -> bool:
    """Whether an expert is its fine-tune's LoRA, as it is or rounded: then it does what the fine-tune does."""
    return metadata.get("form") == "lora" or metadata.get("selection") == "whole"


def elsewhere_notes(measured: Mapping[str, Elsewhere]) -> list[str]:
    """The warnings, for the bundle's notes."""
    return [f"expert {name}: {concern}" for name, found in measured.items() for concern in found.concerns()]
