"""Content digests: what a file is, whatever it is called."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from merge.bundle.errors import BundleError


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expert_digest(path: Path) -> str:
    """Content digest of an expert file: the key under which its KV blocks are cached."""
    return file_digest(path)


def backbone_digest(directory: Path) -> str:
    """Digest of a model directory's weights: SHA-256 over the names and digests of its safetensors files.

    Raises:
        BundleError: where the directory holds no safetensors file.
    """
    shards = sorted(directory.glob("*.safetensors"))
    if not shards:
        raise BundleError(f"{directory} holds no .safetensors file: a backbone is a Hugging Face model directory")
    return weights_digest(shards)


def weights_digest(shards: Iterable[Path]) -> str:
    """Digest of weights: SHA-256 over the names and digests of their files, in the order of the names."""
    digest = hashlib.sha256()
    for shard in sorted(shards):
        digest.update(f"{shard.name}\0{file_digest(shard)}\n".encode())
    return digest.hexdigest()
