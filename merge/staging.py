"""A bundle in the making that can be resumed after its process was killed or failed."""

import errno
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from merge.bundle import BundleWriter
from merge.bundle.digest import file_digest
from merge.bundle.files import replaced

JOURNAL = ".journal.json"
"""Lists the finished parts; it is not part of the bundle."""

FLOATS = ".float32"
"""The merged backbone before it is rounded to few bits: experts are cut from it, and it is not part of the bundle."""


class Staging(BundleWriter):
    """A `BundleWriter` that writes down which parts are finished.

    A process that is killed leaves its staging directory behind, and so does a merge that fails after at least one part
    was finished: a full disk or a fault in the last part does not cost the hours before it. The next merge to the same
    place removes what was left. With `resume` it uses the finished parts if they were made from the same recipe, inputs
    and libraries, after checking their digests, and removes everything else.
    """

    def __init__(self, out: Path, overwrite: bool, key: str, resume: bool) -> None:
        """Prepare; nothing is written yet.

        Args:
            out: the bundle's directory.
            overwrite: replace a bundle that is there.
            key: digest of all that the bundle depends on.
            resume: take over what a killed merge left.
        """
        super().__init__(out, overwrite)
        self._aside = self.path.with_name(f".{out.name}.resumed")
        self.scratch = frozenset({JOURNAL, FLOATS})
        self._key = key
        self._resume = resume
        self._parts: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        super().__enter__()
        if self._aside.is_dir():
            self._take_over(self._aside)
            shutil.rmtree(self._aside, ignore_errors=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self._parts or not self.path.exists():
            super().__exit__(kind, error, trace)
            return
        self._unlock()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            error.filename = str(self.path)  # a failed write does not say where
        error.add_note(
            f"finished parts ({', '.join(self._parts)}) are kept in {self.path}: run the same command with --resume"
        )

    def _prepare(self) -> None:
        # Under this name it is safe from the writer, which removes the staging directories of dead processes.
        taken = self._abandoned() if self._resume else None
        if taken != self._aside:
            shutil.rmtree(self._aside, ignore_errors=True)
        if taken is not None and taken != self._aside:
            taken.rename(self._aside)
        super()._prepare()

    def finished(self, part: str) -> Mapping[str, Any] | None:
        """What was recorded with a part that is finished; None: it is not."""
        return self._parts[part]["data"] if part in self._parts else None

    def record(self, part: str, files: Sequence[Path], data: Mapping[str, Any]) -> None:
        """Write down that a part is finished.

        Args:
            part: its name.
            files: what it consists of, inside `path`.
            data: what to give back when the merge is resumed; JSON.
        """
        digests = {file.relative_to(self.path).as_posix(): self.digests.of(file) for file in files}
        self._parts[part] = {"files": digests, "data": dict(data)}
        with replaced(self.path / JOURNAL) as partial:
            partial.write_text(json.dumps({"key": self._key, "parts": self._parts}))

    def _abandoned(self) -> Path | None:
        """The staging directory of a dead process with this key; of several the one that got furthest."""
        candidates = [self._aside] if self._aside.is_dir() else []
        candidates += [sibling for sibling in self._siblings() if ".staging-" in sibling.name]
        journals = [(_journal(folder), folder) for folder in sorted(candidates)]
        fitting = [(len(parts), folder) for (key, parts), folder in journals if key == self._key]
        return max(fitting)[1] if fitting else None

    def _take_over(self, folder: Path) -> None:
        """Move finished parts whose files are still what they were."""
        for part, entry in _journal(folder)[1].items():
            files = {name: folder / name for name in entry["files"]}
            if all(file.is_file() and file_digest(file) == entry["files"][name] for name, file in files.items()):
                for name, file in files.items():
                    (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                    file.rename(self.path / name)
                    self.digests.know(self.path / name, entry["files"][name])
                self.record(part, [self.path / name for name in files], entry["data"])


def _journal(folder: Path) -> tuple[str, dict[str, Any]]:
    """The key and the parts that a staging directory's journal has; empty if there is none."""
    try:
        journal = json.loads((folder / JOURNAL).read_bytes())
    except (OSError, ValueError):
        return "", {}
    return journal["key"], journal["parts"]
