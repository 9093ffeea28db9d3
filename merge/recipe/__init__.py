"""The recipe: the YAML a user writes. `schema` is its shape, `load` reads it and words what is wrong with it."""

from merge.recipe.load import RecipeError, load_recipe
from merge.recipe.schema import ModelEntry, Recipe

__all__ = ["ModelEntry", "Recipe", "RecipeError", "load_recipe"]
