"""Building the C++ kernels into a cache directory."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "csrc"
INTERFACE = (
    "choice.cpp",
    "expert_linear.cpp",
    "attention.cpp",
    "elementwise.cpp",
    "decoder.cpp",
    "patch.cpp",
    "quantised.cpp",
    "sampling.cpp",
)
PER_ISA: dict[str, tuple[str, ...]] = {"isa.cpp": (), "isa_exact.cpp": ("-ffp-contract=off",)}
"""Sources that are compiled once for each instruction set, with their own flags."""
COMMON_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp")
AVX2_FLAGS = ("-mavx2", "-mfma", "-mf16c")
AVX512_FLAGS = (*AVX2_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")
X86_FLAGS = {
    "avx2": AVX2_FLAGS,
    "avx512": AVX512_FLAGS,
    "avx512bf16": (*AVX512_FLAGS, "-mavx512bf16", "-mavx512vnni"),
    "amx": (*AVX512_FLAGS, "-mavx512bf16", "-mavx512vnni", "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
}
"""One object file of each source of `PER_ISA`. An instruction set that the compiler does not know is left out."""


class BuildError(RuntimeError):
    """The kernels could not be built; the message says why in one line."""


def build() -> Path:
    """The shared library, compiled unless the cache has it.

    The cache is `$OVERTONE_CACHE_DIR`, else `$XDG_CACHE_HOME/overtone`, else `~/.cache/overtone`. The name in it
    depends on the sources, the flags and the compiler's version. Of several processes that need it at the same time one
    compiles it, and the others wait for that one.

    Raises:
        BuildError: a compiler is missing or failed, or the cache cannot be written.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("no C++ compiler was found (c++, g++ or clang++; or set CXX)")
    key = _key(compiler)
    target = cache_dir() / f"kernels-{key}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.parent):
            if target.exists():
                return target
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
                made = _compile(compiler, Path(folder), key)
                made.replace(target)
    except OSError as error:
        raise BuildError(f"the kernels' cache {target.parent} cannot be written: {error}") from error
    return target


def cache_dir() -> Path:
    """Where built kernels are kept."""
    own = os.environ.get("OVERTONE_CACHE_DIR")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "overtone"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this block. On a file system without locks they may be in it together."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _key(compiler: str) -> str:
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    digest.update(
        repr((INTERFACE, PER_ISA, COMMON_FLAGS, X86_FLAGS, platform.machine(), _run([compiler, "--version"]))).encode()
    )
    return digest.hexdigest()[:16]


def _compile(compiler: str, folder: Path, key: str) -> Path:
    def one(name: str, flags: tuple[str, ...]) -> list[Path]:
        return [built(name, flags, source, own) for source, own in PER_ISA.items()]

    def built(name: str, flags: tuple[str, ...], source: str, own: tuple[str, ...]) -> Path:
        made = folder / f"{name}-{source}.o"
        define = f"-DOVERTONE_ISA={name}"
        _run([compiler, *COMMON_FLAGS, *flags, *own, define, "-c", str(SOURCES / source), "-o", str(made)])
        return made

    def optional(item: tuple[str, tuple[str, ...]]) -> tuple[str, list[Path]] | None:
        try:
            return item[0], one(*item)
        except BuildError:
            return None

    flags = X86_FLAGS if platform.machine().lower() in {"x86_64", "amd64"} else {}
    with ThreadPoolExecutor() as pool:
        generic = pool.submit(one, "generic", ())
        made_of = dict(made for made in pool.map(optional, flags.items()) if made is not None)
        defines = [f'-DOVERTONE_BUILD="{key}"', *(f"-DOVERTONE_{name.upper()}" for name in made_of)]
        objects = [made for several in (*made_of.values(), generic.result()) for made in several]
    made = folder / "kernels.so"
    sources = [str(SOURCES / name) for name in INTERFACE]
    _run([compiler, *COMMON_FLAGS, *defines, "-shared", *sources, *map(str, objects), "-o", str(made)])
    return made


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if "error" in line), "it gave no reason")
        raise BuildError(f"{command[0]} failed: {reason.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} could not be run: {error}") from error
