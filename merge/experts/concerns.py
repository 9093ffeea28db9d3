"""What in an expert's figures suggests that it answers worse than it should."""

from merge.experts.config import USUAL_DENSITY, USUAL_MOST, ExpertConfig
from merge.experts.jobs import ExpertReport
from merge.experts.magnitude import usual_code_factor

MANY = 0.25
"""Share of empty replies from which a warning is given. A fine-tune may answer a few of its prompts with nothing."""

ABOVE = (
    f"above {USUAL_MOST:g} the entries that an expert keeps end farther from the fine-tune than the base is, and "
    "answers can become worse than the backbone's alone; rescale: nearest and values: exact avoid that"
)


def concerns(report: ExpertReport) -> list[str]:
    """What a user should know of a finished expert, a sentence each without its full stop."""
    found = []
    if report.factor is not None and report.factor > USUAL_MOST:
        found.append(f"μ is {report.factor:.3g}: {ABOVE}")
    if report.divergence is not None and report.divergence[1] >= report.divergence[0] > 0:
        found.append("on the calibration prompts the backbone alone is as close to the fine-tune as with the expert")
    if report.empty > MANY * report.prompts:
        found.append(
            f"the fine-tune replied with nothing to {report.empty} of {report.prompts} calibration prompts: they "
            "should be worded and formatted as the prompts that it was trained on"
        )
    return found


def foreseen(config: ExpertConfig) -> list[str]:
    """What a resolved configuration lets expect before an expert is cut."""
    rescale = config.rescale
    if isinstance(rescale, float) and rescale > USUAL_MOST:
        return [f"experts.rescale is {rescale:g}: {ABOVE}"]
    if rescale in {"code", "paper"} and (usual := usual_code_factor(config.density or USUAL_DENSITY)) > USUAL_MOST:
        more = "" if rescale == "code" else ", times about the number of models"
        return [f"experts.rescale: {rescale} gives a μ of about {usual:.2g}{more} at this density: {ABOVE}"]
    return []
