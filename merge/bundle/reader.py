"""Opening a bundle, or a plain model directory in place of one."""

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from merge.bundle.adapter_config import ADAPTER_CONFIG
from merge.bundle.digest import backbone_digest, file_digest
from merge.bundle.errors import BundleError, MissingFileError, UnreadableFileError
from merge.bundle.expert import Expert, read_expert
from merge.bundle.expert_header import ExpertLayout, read_layout
from merge.bundle.manifest import BUNDLE_FORMAT, MANIFEST_NAME, ExpertCard, Manifest, read_manifest
from merge.bundle.tensor_file import unreadable


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: paths and manifest. Weights are read by those who need them.

    Attributes:
        path: the directory.
        manifest: what it holds.
        plain: `path` is itself a Hugging Face model directory, served as a backbone without experts.
        other_router: a router's directory that is taken instead of the bundle's own.
    """

    path: Path
    manifest: Manifest
    plain: bool = False
    other_router: Path | None = None

    @property
    def backbone_dir(self) -> Path:
        """The backbone, a plain Hugging Face directory."""
        return self.path if self.plain else self.path / "backbone"

    @property
    def router_dir(self) -> Path | None:
        """The router's directory, or None if there is none."""
        if self.other_router is not None or self.plain:
            return self.other_router
        directory = self.path / "router"
        return directory if directory.is_dir() else None

    @cached_property
    def expert_names(self) -> tuple[str, ...]:
        """The experts' names, sorted."""
        return tuple(sorted(card.name for card in self.manifest.experts))

    def card(self, name: str) -> ExpertCard:
        """The manifest's entry for an expert.

        Raises:
            BundleError: for a name that the bundle does not hold.
        """
        if (card := self._cards.get(name)) is not None:
            return card
        raise BundleError(f"no expert {name!r} in {self.path}; it holds {', '.join(self.expert_names) or 'none'}")

    def expert_path(self, name: str) -> Path:
        """File of an expert that the manifest lists."""
        return self.path / "experts" / f"{self.card(name).name}.safetensors"

    def read_expert(self, name: str) -> Expert:
        """Read an expert and check that it was cut against this bundle's backbone."""
        return read_expert(self.expert_path(name), self.manifest.backbone_digest)

    def expert_layout(self, name: str) -> ExpertLayout:
        """What the header of an expert's file says; it is read once.

        Raises:
            BundleError: the file cannot be read.
        """
        if (layout := self._layouts.get(name)) is None:
            layout = self._layouts[name] = read_layout(self.expert_path(name))
        return layout

    @cached_property
    def _layouts(self) -> dict[str, ExpertLayout]:
        return {}

    @cached_property
    def _cards(self) -> Mapping[str, ExpertCard]:
        return {card.name: card for card in self.manifest.experts}


def open_bundle(path: Path, verify: bool = False) -> Bundle:
    """Open a bundle and check that its files are there, with their sizes.

    Args:
        path: the bundle's directory.
        verify: also read every file and compare its digest.

    Raises:
        BundleError: what is missing or does not match, and what was expected.
    """
    manifest = read_manifest(path)
    for name, card in manifest.files.items():
        file = path / name
        try:
            found = file.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingFileError(f"{path} is incomplete: {name} is missing") from error
        except OSError as error:
            raise UnreadableFileError(unreadable(file, error)) from error
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"{path} is incomplete: {name} is not a file")
        if found.st_size != card.bytes:
            raise BundleError(f"{file} has {found.st_size} bytes; the manifest says {card.bytes}")
        if verify and file_digest(file) != card.sha256:
            raise BundleError(f"{file} was changed after merging: its digest is not the manifest's")
    if verify and backbone_digest(path / "backbone") != manifest.backbone_digest:
        raise BundleError(f"{path / 'backbone'} is not the backbone that the manifest describes")
    return Bundle(path, manifest)


def open_model(path: Path) -> Bundle:
    """Open a Hugging Face model directory as a bundle of a backbone without experts; a bundle is opened as what it is.

    All weights are read once for their digest. Its name is that of `model_name`.

    Raises:
        BundleError: it is neither of them, its weights are not safetensors, or a file cannot be read.
    """
    if not path.exists():
        raise MissingFileError(f"no bundle or model at {path}")
    if (path / MANIFEST_NAME).exists() or not (path / "config.json").is_file():
        if (path / ADAPTER_CONFIG).is_file():
            raise BundleError(
                f"{path} is a LoRA adapter: serve the model that it was trained on, with --lora-modules NAME={path}"
            )
        return open_bundle(path)
    try:
        weights = sum(shard.stat().st_size for shard in path.glob("*.safetensors"))
        written = (path / "config.json").stat().st_mtime
        digest = backbone_digest(path)
    except OSError as error:
        raise UnreadableFileError(unreadable(Path(error.filename or path), error)) from error
    manifest = Manifest(
        name=model_name(path),
        created=datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds"),
        format_version=BUNDLE_FORMAT,
        backbone_digest=digest,
        backbone_bytes=weights,
        experts=(),
        files={},
    )
    return Bundle(path, manifest, plain=True)


def model_name(directory: Path) -> str:
    """What a model is called by its directory: the last part of its path.

    The folder `backbone` of a bundle has the bundle's name, and a snapshot in the Hub's cache
    (`models--OWNER--NAME/snapshots/REVISION`) the repository's.
    """
    real = directory.resolve()
    if real.parent.name == "snapshots":
        return real.parent.parent.name.rpartition("--")[2]
    return (real.parent.name if real.name == "backbone" else real.name) or "model"
