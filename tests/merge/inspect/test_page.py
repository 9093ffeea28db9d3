import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from merge.bundle import Bundle, open_bundle
from merge.inspect import Pictures, html_page, inspect_bundle, take_pictures
from merge.progress import Progress

VOID = {"meta", "link", "line", "rect", "br"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order or never."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def pictures(bundle: Bundle) -> Pictures:
    return take_pictures(bundle, Progress(False))


def check_page(page: str) -> None:
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    # Nothing is fetched: no address but the empty icon, no script, no style from elsewhere.
    assert not re.search(r"https?:|<script|@import|url\(", page)
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["data:,"]


def test_with_its_inputs_a_bundle_has_all_pictures(bundle: Bundle, pictures: Pictures) -> None:
    assert pictures.remarks == ()
    assert pictures.spectra is not None
    assert [curve.label for curve in pictures.spectra.curves] == ["task vectors", "after the filter"]
    below = [
        q
        for f, q in zip(pictures.spectra.frequency, pictures.spectra.curves[1].power, strict=True)
        if f < 0.27 and q is not None
    ]
    assert below
    assert max(below) < 1e-6
    assert pictures.task_similarity is not None
    assert pictures.task_similarity.names == ("one", "two")
    assert pictures.confusion is not None
    page = html_page(inspect_bundle(bundle), pictures)
    check_page(page)
    for title in (
        "Radial spectrum",
        "Similarity of the task vectors",
        "Overlap of the experts",
        "Router",
        "Experts",
        "Router: coverage and accuracy",
    ):
        assert f"<h2>{title}</h2>" in page
    assert page.count("<svg") == 8
    json.dumps(pictures.as_json())


def test_without_them_it_says_what_is_missing(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    manifest = json.loads((copy / "bundle.json").read_text())
    for key, entry in manifest["inputs"].items():
        entry["path"] = str(tmp_path / "gone" / key)
    (copy / "bundle.json").write_text(json.dumps(manifest))
    moved = open_bundle(copy)
    found = take_pictures(moved, Progress(False))
    assert found.task_similarity is None
    assert found.confusion is None
    assert found.spectra is not None
    assert [curve.label for curve in found.spectra.curves] == ["residuals of the experts"]
    assert any("base" in remark for remark in found.remarks)
    assert any("calibration prompts" in remark for remark in found.remarks)
    page = html_page(inspect_bundle(moved), found)
    check_page(page)
    assert "Not shown" in page
    assert "the task vectors are unavailable" in page


def test_a_model_that_changed_since_is_not_taken(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["inputs"]["models/one"]["path"] = manifest["inputs"]["models/two"]["path"]
    (copy / "bundle.json").write_text(json.dumps(manifest))
    found = take_pictures(open_bundle(copy), Progress(False))
    assert any("The model one" in remark and "has changed" in remark for remark in found.remarks)
    assert found.task_similarity is not None
    assert found.task_similarity.names == ("two",)


def test_names_are_escaped(bundle: Bundle, pictures: Pictures) -> None:
    found = inspect_bundle(bundle)
    evil = "<img src=x onerror=alert(1)>"
    experts = (replace(found.experts[0], name=evil, cut={evil: evil}), *found.experts[1:])
    page = html_page(replace(found, name=evil, experts=experts, notes=(evil,)), pictures)
    assert "<img" not in page
    check_page(page)
