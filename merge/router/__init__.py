"""Training the router: a few dozen prompts a task in, a calibrated text classifier out, in seconds.

`training` prepares prompts and trains on them, `features` makes what the heads read, `heads` fits one linear classifier
an expert, `phrasings` finds prompts that are worded alike so that held-out scores are honest, `calibration` turns
scores into probabilities and picks the threshold, `background` holds prompts that belong to no expert, and `foreign`
reads those that the user gives. `labelled` and `quality` judge a router.
"""

from merge.router.background import background_prompts
from merge.router.config import RouterConfig, packaged_encoder
from merge.router.foreign import read_foreign
from merge.router.labelled import read_labelled
from merge.router.quality import RoutingQuality, routing_quality
from merge.router.training import LEAST_PROMPTS, add_expert, too_few_prompts, train_router

__all__ = [
    "LEAST_PROMPTS",
    "RouterConfig",
    "RoutingQuality",
    "add_expert",
    "background_prompts",
    "packaged_encoder",
    "read_foreign",
    "read_labelled",
    "routing_quality",
    "too_few_prompts",
    "train_router",
]
