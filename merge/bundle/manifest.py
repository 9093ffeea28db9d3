"""bundle.json: the contents of a bundle, its inputs, and the digests for checking it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from merge.bundle.errors import BundleError, MissingFileError, UnreadableFileError
from merge.bundle.tensor_file import unreadable

BUNDLE_FORMAT = 1
MANIFEST_NAME = "bundle.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileCard(_Frozen):
    """One file of the bundle."""

    sha256: str
    bytes: int


class ExpertCard(_Frozen):
    """One expert.

    Attributes:
        name: the task's name.
        digest: SHA-256 of the expert's file.
        bytes: of its tensors.
        nnz: of `entries`, those that are not zero.
        entries: numbers that it stores: values of all sparse rows, padding included, of both factors of every low-rank
            part, and of the deltas of 1-D parameters.
        density: requested fraction of kept entries in the sparse parts; 0 if there is none.
    """

    name: str
    digest: str
    bytes: int
    nnz: int
    entries: int
    density: float


class ManifestFields(_Frozen):
    """What the merger knows and the writer cannot read off the files.

    Attributes:
        created: ISO time. A bundle whose manifest leaves it out has the same bytes whenever it is merged; reading then
            fills in the time at which the manifest was written.
    """

    name: str
    created: str = ""
    recipe_sha256: str | None = None
    inputs: Mapping[str, Any] = {}
    versions: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()


class Manifest(ManifestFields):
    """The whole manifest. Written last, so its presence says that the bundle is complete."""

    format_version: int
    backbone_digest: str
    backbone_bytes: int
    experts: tuple[ExpertCard, ...]
    files: Mapping[str, FileCard]


def read_manifest(bundle: Path) -> Manifest:
    """Read `bundle`/bundle.json.

    Raises:
        MissingFileError, UnreadableFileError: there is no such file, or it cannot be read.
        BundleError: other format version, or fields missing or wrong (named).
    """
    path = bundle / MANIFEST_NAME
    try:
        content = path.read_bytes()
        written = path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError) as error:
        if not bundle.is_dir():
            raise MissingFileError(
                f"no bundle at {bundle}: `overtone merge RECIPE {bundle}` would write one"
            ) from error
        raise MissingFileError(
            f"{bundle} is not a bundle: it has no {MANIFEST_NAME}, which `overtone merge` writes last"
        ) from error
    except OSError as error:
        raise UnreadableFileError(unreadable(path, error)) from error
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise BundleError(f"{path}: {where}: {first['msg']}") from error
    if manifest.format_version != BUNDLE_FORMAT:
        raise BundleError(f"{path} has bundle format {manifest.format_version}; this version reads {BUNDLE_FORMAT}")
    if manifest.created:
        return manifest
    created = datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds")
    return manifest.model_copy(update={"created": created})
