"""Writing a bundle: into a temporary sibling, flushed, then renamed. It exists whole or not at all."""

import os
import re
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from merge.bundle.digest import backbone_digest, file_digest
from merge.bundle.errors import BundleError
from merge.bundle.expert import read_expert
from merge.bundle.expert_header import expert_bytes
from merge.bundle.files import fsync_path
from merge.bundle.manifest import BUNDLE_FORMAT, MANIFEST_NAME, ExpertCard, FileCard, Manifest, ManifestFields


class BundleWriter:
    """Context manager around a staging directory.

    Inside the block, fill `path` (backbone/, experts/, router/, recipe.yml, README.md), then call `finish`. Leaving the
    block without it, by an exception or otherwise, removes the staging directory and leaves `out` as it was.
    """

    def __init__(self, out: Path, overwrite: bool = False) -> None:
        self._out = out.absolute()
        self._overwrite = overwrite
        self._finished = False
        self.path = self._out.with_name(f".{self._out.name}.staging-{os.getpid()}")

    def __enter__(self) -> Self:
        self.check_target()
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        self.path.mkdir()
        for folder in ("backbone", "experts"):
            (self.path / folder).mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            shutil.rmtree(self.path, ignore_errors=True)

    def finish(self, fields: ManifestFields) -> Manifest:
        """Digest what was staged, write the manifest, flush everything and put the bundle in its place.

        Raises:
            BundleError: where an expert was cut against another backbone than the one staged.
        """
        backbone = backbone_digest(self.path / "backbone")
        names = sorted(path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())
        files = {
            name.as_posix(): FileCard(sha256=file_digest(self.path / name), bytes=(self.path / name).stat().st_size)
            for name in names
        }
        manifest = Manifest(
            **fields.model_dump(),
            format_version=BUNDLE_FORMAT,
            backbone_digest=backbone,
            backbone_bytes=sum(card.bytes for name, card in files.items() if _is_backbone_weight(name)),
            experts=tuple(
                self._expert_card(path, files, backbone)
                for path in sorted((self.path / "experts").glob("*.safetensors"))
            ),
            files=files,
        )
        unknown = None if manifest.created else {"created"}
        (self.path / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2, exclude=unknown) + "\n")
        for path in self.path.rglob("*"):
            fsync_path(path)
        fsync_path(self.path)
        self._take_place()
        return manifest

    def _expert_card(self, path: Path, files: dict[str, FileCard], backbone: str) -> ExpertCard:
        expert = read_expert(path, backbone)
        if expert.name != path.stem:
            raise BundleError(
                f"{path.name} holds the expert {expert.name!r}: its file must be {expert.name}.safetensors"
            )
        return ExpertCard(
            name=expert.name,
            digest=files[f"experts/{path.name}"].sha256,
            bytes=expert_bytes(path),
            nnz=expert.nnz,
            entries=expert.entries,
            density=expert.density,
        )

    def check_target(self) -> None:
        """Check that `out` can be written.

        Raises:
            BundleError: it is a file, not empty (without `overwrite`), or holds something that is no bundle.
        """
        if not self._out.exists():
            return
        if not self._out.is_dir():
            raise BundleError(f"{self._out} is a file; a bundle is written to a directory")
        if any(self._out.iterdir()):
            if not self._overwrite:
                what = "is a bundle already" if (self._out / MANIFEST_NAME).is_file() else "exists and is not empty"
                raise BundleError(f"{self._out} {what}: name another place, or pass --overwrite")
            if not (self._out / MANIFEST_NAME).is_file():
                raise BundleError(f"{self._out} holds something that is no bundle: it will not be overwritten")

    def _take_place(self) -> None:
        previous = self._out.with_name(f".{self._out.name}.previous-{os.getpid()}")
        if self._out.exists():
            self._out.rename(previous)
        self.path.rename(self._out)
        self._finished = True
        fsync_path(self._out.parent)
        shutil.rmtree(previous, ignore_errors=True)

    @staticmethod
    def in_use(staging: Path) -> bool:
        """Whether the process that made a staging directory, of whatever bundle, still runs."""
        number = staging.name.rpartition("-")[2]
        return number.isdigit() and _is_running(int(number))

    def _remove_abandoned(self) -> None:
        pattern = re.compile(rf"\.{re.escape(self._out.name)}\.(staging|previous)-\d+")
        for sibling in self._out.parent.iterdir():
            if pattern.fullmatch(sibling.name) and not self.in_use(sibling):
                shutil.rmtree(sibling, ignore_errors=True)


def _is_backbone_weight(name: str) -> bool:
    return name.startswith("backbone/") and name.endswith(".safetensors")


def _is_running(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
