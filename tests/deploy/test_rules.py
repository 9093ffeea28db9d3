"""Every name in the dashboard and the rules is one that the server shows, and Prometheus' own tools agree."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.conftest import DEPLOY
from tests.deploy.promql import dashboard_expressions, panels, rule_expressions, rules

OPERATIONS = DEPLOY.parent / "docs/operations.md"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is missing: apt-get install prometheus")


def promtool(*arguments: str | Path, stdin: str = "") -> str:
    done = subprocess.run(
        [PROMTOOL, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_metric_that_is_asked_for_exists(scrape: str):
    shown = {sample.name for family in text_string_to_metric_families(scrape) for sample in family.samples}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for expression in (*dashboard_expressions(), *rule_expressions()):
        assert expression.metrics or expression.text.startswith("up"), expression
        assert expression.metrics <= shown | recorded, f"{expression.owner} asks for what is not there"


def test_every_metric_of_the_engine_is_explained(scrape: str):
    families = {family.name for family in text_string_to_metric_families(scrape)}
    explained = set(re.findall(r"`(overtone_\w+?)(?:_total)?[`{]", OPERATIONS.read_text()))
    assert {name for name in families if name.startswith("overtone_")} == explained


def test_every_alert_says_what_to_do():
    headings = re.findall(r"^#+ (.*)$", OPERATIONS.read_text(), re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    for rule in rules():
        if "alert" in rule:
            page, _, anchor = rule["annotations"]["runbook"].partition("#")
            assert (page, anchor) == ("docs/operations.md", rule["alert"].lower())
            assert anchor in anchors
            assert rule["labels"]["severity"] in {"warning", "critical"}


def test_every_alert_is_tried():
    tests = yaml.safe_load((DEPLOY / "prometheus/rules.test.yaml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test.get("alert_rule_test", ()) if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}


def test_panels_have_places_and_sources():
    places = [tuple(panel["gridPos"].values()) for panel in panels()]
    assert len(set(places)) == len(places)
    for panel in panels():
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["datasource"]["uid"] == "${datasource}"


@needs_promtool
def test_promtool_finds_nothing_in_the_metrics(scrape: str):
    assert promtool("check", "metrics", stdin=scrape) == ""


@needs_promtool
def test_promtool_accepts_the_rules_and_the_configuration():
    assert f"{len(rules())} rules found" in promtool("check", "rules", DEPLOY / "prometheus/rules.yaml")
    promtool("check", "config", DEPLOY / "prometheus/prometheus.yaml")


@needs_promtool
def test_the_alerts_fire_when_they_should():
    assert "SUCCESS" in promtool("test", "rules", DEPLOY / "prometheus/rules.test.yaml")
