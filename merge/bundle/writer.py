"""Writing a bundle: into a temporary sibling, flushed, then renamed. It exists whole or not at all."""

import os
import re
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from merge.bundle.digest import FileDigests, backbone_digest
from merge.bundle.errors import BundleError
from merge.bundle.expert import read_expert
from merge.bundle.expert_header import expert_bytes
from merge.bundle.files import fsync_path, share_files
from merge.bundle.lock import DirectoryLock, is_locked, locked
from merge.bundle.manifest import BUNDLE_FORMAT, MANIFEST_NAME, ExpertCard, FileCard, Manifest, ManifestFields


class BundleWriter:
    """Context manager around a staging directory.

    Inside the block, fill `path` (backbone/, experts/, router/, recipe.yml, README.md), then call `finish`. Leaving the
    block without it, by an exception or otherwise, removes the staging directory and leaves `out` as it was.

    The staging directory is locked for the length of the block, so that other writers know it from one that a killed
    process left. Two writers never work on one `out` at a time.
    """

    def __init__(self, out: Path, overwrite: bool = False) -> None:
        self._out = out.absolute()
        self._overwrite = overwrite
        self._finished = False
        self._lock: DirectoryLock | None = None
        self.digests = FileDigests()
        """Digests of the finished files in `path`."""
        self.scratch: frozenset[str] = frozenset()
        """Files and folders in `path` that are not part of the bundle: `finish` removes them last."""
        self.path = self._out.with_name(f".{self._out.name}.staging-{os.getpid()}")

    def __enter__(self) -> Self:
        """Make the staging directory.

        Raises:
            BundleError: `out` cannot be written (see `check_target`), or another writer works on it.
        """
        self._out.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._out.parent):
            for sibling in self._siblings():
                if is_locked(sibling):
                    raise BundleError(
                        f"another merge is writing {self._out} (in {sibling}): wait for it, or choose another path"
                    )
            self._restore()
            self.check_target()
            self._prepare()
            self.path.mkdir()
            self._lock = DirectoryLock.acquire(self.path, wait=False)
        for folder in ("backbone", "experts"):
            (self.path / folder).mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _restore(self) -> None:
        """Put an old bundle back that was moved aside by a writer killed before the new one took its place."""
        for sibling in self._siblings():
            if ".previous-" in sibling.name and not self._out.exists():
                sibling.rename(self._out)

    def _prepare(self) -> None:
        """Remove what dead writers left. The parent directory is locked, and no other writer is at work."""
        for sibling in self._siblings():
            shutil.rmtree(sibling, ignore_errors=True)

    def _siblings(self) -> list[Path]:
        """Staging directories for the same `out`, and old bundles that a killed writer had moved aside."""
        pattern = re.compile(rf"\.{re.escape(self._out.name)}\.(staging|previous)-\d+")
        return [sibling for sibling in self._out.parent.iterdir() if pattern.fullmatch(sibling.name)]

    def finish(self, fields: ManifestFields) -> Manifest:
        """Digest what was staged, write the manifest, flush everything and put the bundle in its place.

        Raises:
            BundleError: an expert was cut against another backbone than the staged one.
        """
        backbone = backbone_digest(self.path / "backbone", self.digests.of)
        names = sorted(path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())
        names = [name for name in names if name.parts[0] not in self.scratch]
        files = {
            name.as_posix(): FileCard(sha256=self.digests.of(self.path / name), bytes=(self.path / name).stat().st_size)
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
        share_files(self.path)
        for path in self.path.rglob("*"):
            fsync_path(path)
        for name in self.scratch:
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
            else:
                (self.path / name).unlink(missing_ok=True)
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
            BundleError: it is a file, not empty (without `overwrite`), or holds files that do not belong to a bundle.
        """
        if not self._out.exists():
            return
        if not self._out.is_dir():
            raise BundleError(f"{self._out} is a file; a bundle is written to a directory")
        if any(self._out.iterdir()):
            if not self._overwrite:
                what = "is a bundle already" if (self._out / MANIFEST_NAME).is_file() else "exists and is not empty"
                raise BundleError(f"{self._out} {what}: choose another path, or pass --overwrite")
            if not (self._out / MANIFEST_NAME).is_file():
                raise BundleError(f"{self._out} holds files that do not belong to a bundle: it is not overwritten")

    def _take_place(self) -> None:
        """Move the finished bundle to its destination.

        Raises:
            BundleError: something appeared at `out` meanwhile; it stays, and the bundle is beside it.
        """
        previous = self._out.with_name(f".{self._out.name}.previous-{os.getpid()}")
        with locked(self._out.parent):
            try:
                self.check_target()
            except BundleError as error:
                beside = self._free_name()
                self.path.rename(beside)
                self._finished = True
                fsync_path(self._out.parent)
                raise BundleError(
                    f"{self._out} appeared or changed while the merge ran, and was left alone: the finished bundle is "
                    f"at {beside}"
                ) from error
            if self._overwrite and self._out.exists():
                self._out.rename(previous)
            self.path.rename(self._out)  # over an empty directory, if there is one
            self._finished = True
            fsync_path(self._out.parent)
        shutil.rmtree(previous, ignore_errors=True)

    def _free_name(self) -> Path:
        number = 2
        while (name := self._out.with_name(f"{self._out.name}-{number}")).exists():
            number += 1
        return name


def _is_backbone_weight(name: str) -> bool:
    return name.startswith("backbone/") and name.endswith(".safetensors")
