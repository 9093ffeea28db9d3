"""`overtone check`: reports all errors of a recipe and its inputs before the merge begins.

`finding` is one error or warning; `inputs` opens what a recipe names; `tensors`, `settings` and `tokenizers` compare a
fine-tune with the base; `place` looks at the output's directory and disk; `weights` reads every tensor once, for NaN
and for figures that tell a wrong base; `cost` estimates what the merge takes. `run` puts them together; merging runs
all but `weights` and `cost` first, and looks for NaN as it reads.
"""

from merge.check.finding import CheckError, Finding
from merge.check.inputs import Inputs
from merge.check.run import CheckReport, check_recipe, checked_inputs

__all__ = ["CheckError", "CheckReport", "Finding", "Inputs", "check_recipe", "checked_inputs"]
