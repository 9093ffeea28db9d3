"""Looking into a bundle: what its experts hold, how alike they are, and what the merge and the router did.

`summary` reads the bundle alone, and `layers` has its ranks by layer. `similarity` compares experts or task vectors.
`spectrum` and `confusion` need what the bundle was merged from, which `inputs` finds. `pictures` puts those together,
and `page` makes an HTML report of everything with `merge.report`.
"""

from merge.inspect.page import html_page
from merge.inspect.pictures import Pictures, take_pictures
from merge.inspect.summary import ExpertSummary, Inspection, ParameterSummary, inspect_bundle

__all__ = [
    "ExpertSummary",
    "Inspection",
    "ParameterSummary",
    "Pictures",
    "html_page",
    "inspect_bundle",
    "take_pictures",
]
