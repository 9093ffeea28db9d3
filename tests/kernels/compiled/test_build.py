from pathlib import Path

import pytest

from kernels.compiled.build import BuildError, build, cache_dir

COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo stand-in $VERSION; exit 0; fi
while [ "$1" != -o ]; do shift; done
echo made > "$2"
"""


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that writes a word where the compiler would write its output."""
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
