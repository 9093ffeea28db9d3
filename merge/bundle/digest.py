"""Content digests: what a file is, whatever it is called."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from merge.bundle.errors import BundleError


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileDigests:
    """Digests of files that do not change any more. Each file is read once: hashing 16 GB takes 13 s of a processor."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        """SHA-256 of a file's bytes, in hex, as it was when it was first asked for."""
        if path not in self._known:
            self._known[path] = file_digest(path)
        return self._known[path]

    def know(self, path: Path, digest: str) -> None:
        """Take over what is known of a file."""
        self._known[path] = digest


def expert_digest(path: Path) -> str:
    """Content digest of an expert file: the key under which its KV blocks are cached."""
    return file_digest(path)


def backbone_digest(directory: Path, digest_of: Callable[[Path], str] = file_digest) -> str:
    """Digest of a model directory's weights: SHA-256 over the names and digests of its safetensors files.

    Args:
        directory: the model's.
        digest_of: a file's digest.

    Raises:
        BundleError: the directory has no safetensors file.
    """
    shards = sorted(directory.glob("*.safetensors"))
    if not shards:
        raise BundleError(f"{directory} holds no .safetensors file: a backbone is a Hugging Face model directory")
    return weights_digest(shards, digest_of)


def weights_digest(shards: Iterable[Path], digest_of: Callable[[Path], str] = file_digest) -> str:
    """Digest of weights: SHA-256 over the names and digests of their files, in the order of the names."""
    digest = hashlib.sha256()
    for shard in sorted(shards):
        digest.update(f"{shard.name}\0{digest_of(shard)}\n".encode())
    return digest.hexdigest()
