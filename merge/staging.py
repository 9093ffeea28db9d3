"""A bundle in the making that can be gone on with after its process was killed."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from merge.bundle import BundleWriter, Manifest, ManifestFields
from merge.bundle.digest import file_digest
from merge.bundle.files import replaced

JOURNAL = ".journal.json"
"""Lists the finished parts; it is not part of the bundle."""


class Staging(BundleWriter):
    """A `BundleWriter` that writes down which parts are finished.

    A process that is killed leaves its staging directory behind. The next merge to the same place removes it or, with
    `resume`, takes it over where it was made from the same recipe, inputs and libraries: finished parts, checked by
    their digests, stay, and everything else in it goes. Ctrl-C leaves it behind as well; any other failure removes it.
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
        self._out_path = out.absolute()
        self._key = key
        self._resume = resume
        self._parts: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        # Under this name it is safe from the writer, which removes the staging directories of dead processes.
        aside = self.path.with_name(f".{self._out_path.name}.resumed")
        taken = self._abandoned(aside) if self._resume else None
        if taken is not None and taken != aside:
            shutil.rmtree(aside, ignore_errors=True)
            taken.rename(aside)
        super().__enter__()
        if taken is not None:
            self._take_over(aside)
        shutil.rmtree(aside, ignore_errors=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            super().__exit__(kind, error, trace)

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
        digests = {file.relative_to(self.path).as_posix(): file_digest(file) for file in files}
        self._parts[part] = {"files": digests, "data": dict(data)}
        with replaced(self.path / JOURNAL) as partial:
            partial.write_text(json.dumps({"key": self._key, "parts": self._parts}))

    def finish(self, fields: ManifestFields) -> Manifest:
        """Drop the journal, then finish the bundle."""
        (self.path / JOURNAL).unlink(missing_ok=True)
        return super().finish(fields)

    def _abandoned(self, aside: Path) -> Path | None:
        """The staging directory of a dead process with this key; of several the one that got furthest."""
        pattern = re.compile(rf"\.{re.escape(self._out_path.name)}\.staging-\d+")
        candidates = [aside] if aside.is_dir() else []
        for sibling in self._out_path.parent.iterdir() if self._out_path.parent.is_dir() else ():
            if pattern.fullmatch(sibling.name) and not self.in_use(sibling):
                candidates.append(sibling)
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
                self.record(part, [self.path / name for name in files], entry["data"])


def _journal(folder: Path) -> tuple[str, dict[str, Any]]:
    """The key and the parts that a staging directory's journal has; empty where there is none."""
    try:
        journal = json.loads((folder / JOURNAL).read_bytes())
    except (OSError, ValueError):
        return "", {}
    return journal["key"], journal["parts"]
