import ctypes
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernels.compiled.build import COMMON_FLAGS, SOURCES, BuildError, build, cache_dir
from kernels.compiled.library import STRUCTS, load

COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo stand-in $VERSION; exit 0; fi
while [ "$1" != -o ]; do shift; done
echo made > "$2"
"""


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that writes a word to the path of the compiler's output."""
    script = tmp_path / "c++"
    script.write_text(COMPILER)
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("OVERTONE_CACHE_DIR", str(tmp_path / "cache"))
    return script


def test_a_build_is_kept_and_nothing_else_is_left(compiler: Path, tmp_path: Path) -> None:
    made = build()
    assert made.read_text() == "made\n"
    assert list((tmp_path / "cache").iterdir()) == [made]
    compiler.write_text('#!/bin/sh\nif [ "$1" = --version ]; then echo stand-in $VERSION; exit 0; fi\nexit 1\n')
    assert build() == made


def test_several_that_need_it_at_the_same_time_compile_it_once(compiler: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    linking = f'case "$*" in *-shared*) sleep 0.2; echo >> {runs};; esac'
    compiler.write_text(COMPILER.replace("while", f"{linking}\nwhile", 1))
    with ThreadPoolExecutor(3) as pool:
        made = {pool.submit(build) for _ in range(3)}
    assert len({future.result() for future in made}) == 1
    assert runs.read_text() == "\n"


def test_another_compiler_version_is_another_build(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build()
    monkeypatch.setenv("VERSION", "2")
    assert build() != first


def test_an_unknown_instruction_set_is_left_out(compiler: Path) -> None:
    compiler.write_text(COMPILER.replace("while", 'case "$*" in *-mavx512bf16*) exit 1;; esac\nwhile', 1))
    assert build().exists()


@pytest.mark.usefixtures("compiler")
def test_a_failing_compiler_is_quoted(compiler: Path, tmp_path: Path) -> None:
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "x.cpp:1: error: no such word" >&2\nexit 1\n')
    with pytest.raises(BuildError, match="failed: x.cpp:1: error: no such word"):
        build()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.usefixtures("compiler")
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OVERTONE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(BuildError, match="cannot be written"):
        build()


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="no C\\+\\+ compiler was found"):
        build()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("OVERTONE_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path("/home/someone/.cache/overtone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_dir() == Path("/var/cache/overtone")
    monkeypatch.setenv("OVERTONE_CACHE_DIR", "/kernels")
    assert cache_dir() == Path("/kernels")


CXX = shutil.which("c++")
needs_compiler = pytest.mark.skipif(CXX is None, reason="no compiler here")
TABLE = (SOURCES / "isa.cpp").read_text()
ROWS = [line for line in TABLE.splitlines() if line.startswith("    .")]


def compiles(table: str, folder: Path) -> bool:
    source = folder / "isa.cpp"
    source.write_text(table)
    command = [CXX, *COMMON_FLAGS, "-I", SOURCES, "-fsyntax-only", "-DOVERTONE_ISA=generic", source]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@needs_compiler
def test_a_table_of_kernels_without_one_of_them_does_not_compile(tmp_path: Path) -> None:
    assert compiles(TABLE, tmp_path)
    assert len(ROWS) > 10
    for row in (ROWS[0], ROWS[len(ROWS) // 2], ROWS[-1]):
        assert not compiles(TABLE.replace(f"{row}\n", ""), tmp_path), row


LIBRARY = """
extern "C" const char* overtone_build() { return "abc"; }
#define SIZE(name, bytes) extern "C" int overtone_##name##_bytes() { return bytes; }
"""


def library_with(folder: Path, sizes: dict[str, int], name: str = "kernels-abc.so") -> Path:
    source = folder / "library.cpp"
    source.write_text(LIBRARY + "".join(f"SIZE({struct}, {size})\n" for struct, size in sizes.items()))
    subprocess.run([CXX, "-shared", "-fPIC", source, "-o", folder / name], check=True)
    return folder / name


SIZES = {name: ctypes.sizeof(structure) for name, structure in STRUCTS.items()}


@needs_compiler
def test_a_library_is_loaded_if_its_build_and_its_structs_are_pythons(tmp_path: Path) -> None:
    assert load(library_with(tmp_path, SIZES)).overtone_Bank_bytes() == SIZES["Bank"]
    with pytest.raises(BuildError, match="kernels-abd.so contains the build abc; delete it"):
        load(library_with(tmp_path, SIZES, "kernels-abd.so"))
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(BuildError, match=f"Batch has 4 bytes in C\\+\\+ and {SIZES['Batch']} in Python"):
        load(library_with(other, SIZES | {"Batch": 4}))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with pytest.raises(BuildError, match="not a library of these kernels"):
        load(library_with(foreign, {}))
