"""`overtone serve`: a bundle, or a model with LoRA adapters, behind OpenAI's API."""

from typing import Any

from serve.cli.server_options import SETTINGS, BundleOrModel, server_settings, teach, with_settings


@with_settings(*SETTINGS)
def command(bundle: BundleOrModel, **options: Any) -> None:
    """Serve a bundle, or a model with LoRA adapters, behind OpenAI's API."""
    from serve.api.server import run  # torch takes a second to import; --help should not

    run(server_settings({"bundle": bundle, **options}), teach=teach)
