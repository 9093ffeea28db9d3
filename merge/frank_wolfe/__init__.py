"""FW-Merging (arXiv 2503.12649): merging as minimisation of a loss over the convex hull of the fine-tunes.

Unlike `merge.methods` it needs the gradient of the whole model, so it is no function of one tensor. `config` holds the
recipe's parameters, `objective` says what a loss is and `language_model` is one, `vertices` streams the hull's corners
from disk and `scores` holds them against a gradient, `step` and `soft` say how far to go (`simplex` projects), `search`
is one step and `merge` the loop.
"""

from merge.frank_wolfe.config import FrankWolfeConfig, MethodChoice, ObjectiveConfig, SoftConfig
from merge.frank_wolfe.language_model import LanguageModelLoss, language_model_loss
from merge.frank_wolfe.merge import FrankWolfeMerge, merge_frank_wolfe
from merge.frank_wolfe.objective import Objective
from merge.frank_wolfe.search import Step
from merge.frank_wolfe.simplex import project_onto_simplex

__all__ = [
    "FrankWolfeConfig",
    "FrankWolfeMerge",
    "LanguageModelLoss",
    "MethodChoice",
    "Objective",
    "ObjectiveConfig",
    "SoftConfig",
    "Step",
    "language_model_loss",
    "merge_frank_wolfe",
    "project_onto_simplex",
]
