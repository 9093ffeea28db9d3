"""The expressions in deploy/, and the names in them."""

import json
import re
from dataclasses import dataclass
from typing import Any

import yaml

from tests.deploy.conftest import DEPLOY

_METRIC = re.compile(r"\b(?:overtone|process|job:overtone)_[a-zA-Z0-9_:]+")
_VARIABLES = {"$__rate_interval": "1m", "$__range": "5m", "$job": ".*", "$instance": ".*"}


@dataclass(frozen=True)
class Expression:
    """PromQL, and whose it is."""

    owner: str
    text: str

    @property
    def metrics(self) -> set[str]:
        """Names in it."""
        return set(_METRIC.findall(self.text))

    @property
    def filled(self) -> str:
        """With Grafana's variables replaced by values."""
        text = self.text
        for name, value in _VARIABLES.items():
            text = text.replace(name, value)
        return text


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, rows left out."""
    dashboard = json.loads((DEPLOY / "grafana/dashboards/overtone.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def dashboard_expressions() -> list[Expression]:
    return [Expression(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


def rules() -> list[dict[str, Any]]:
    """Recording and alert rules."""
    document = yaml.safe_load((DEPLOY / "prometheus/rules.yaml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def rule_expressions() -> list[Expression]:
    return [Expression(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]
