"""FW-Merging (arXiv 2503.12649): merging as minimisation of a loss over the convex hull of the fine-tunes.

Unlike `merge.methods` it needs the gradient of the whole model, so it is not a function of one tensor. `config` has
the recipe's parameters. `objective` defines a loss, and `language_model` is one. `vertices` streams the vertices of the
hull from disk, and `scores` computes their inner products with a gradient. `step` and `soft` choose the step size
(`simplex` projects), `search` is one step, and `merge` is the loop.
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
