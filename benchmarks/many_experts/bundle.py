"""A bundle of as many experts as wanted, made of the embedded models' experts."""

import dataclasses
import shutil
from pathlib import Path

from merge.bundle import Bundle, BundleWriter, ManifestFields, open_bundle, write_expert


def write_many(path: Path, source: Bundle, number: int) -> Bundle:
    """Write a bundle with `number` copies of a bundle's experts in turn. Each copy has a different name and digest.

    The names are `e00000`, `e00001` and so on.
    """
    experts = [source.read_expert(name) for name in source.expert_names]
    with BundleWriter(path) as staging:
        shutil.copytree(source.backbone_dir, staging.path / "backbone", dirs_exist_ok=True)
        for place in range(number):
            expert = dataclasses.replace(experts[place % len(experts)], name=f"e{place:05}")
            write_expert(staging.path / "experts" / f"{expert.name}.safetensors", expert)
        staging.finish(ManifestFields(name="many", created=source.manifest.created))
    return open_bundle(path)


def first_experts(bundle: Bundle, number: int) -> Bundle:
    """The same directory as a bundle of its first experts alone."""
    experts = sorted(bundle.manifest.experts, key=lambda card: card.name)[:number]
    return dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"experts": tuple(experts)}))
