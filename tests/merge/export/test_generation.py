import json
from dataclasses import replace
from pathlib import Path

import pytest

from merge.bundle import GenerationSettings, TemplateText, own_settings, write_expert
from merge.export import export_adapter, export_dense
from merge.export.generation import write_generation
from tests.merge.export.bundles import write

TEMPLATE = TemplateText("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}", {"bos_token": "<bos>"})
OWN = GenerationSettings((2, 7), TEMPLATE, {"temperature": 0.5})


@pytest.mark.parametrize("form", ["dense", "peft"])
def test_an_experts_settings_are_there_for_other_servers(tmp_path: Path, form: str) -> None:
    bundle = write(tmp_path / "bundle").bundle
    write_expert(bundle.expert_path("one"), replace(bundle.read_expert("one"), settings=OWN))
    if form == "dense":
        export_dense(bundle, "one", tmp_path / "out")
    else:
        export_adapter(bundle, "one", tmp_path / "out", rank=2)
    assert own_settings(bundle.backbone_dir, tmp_path / "out") == OWN
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE.source


def test_settings_go_over_those_that_are_there(tmp_path: Path) -> None:
    there = {"eos_token_id": 2, "temperature": 0.9, "top_p": 0.8, "max_length": 20}
    (tmp_path / "generation_config.json").write_text(json.dumps(there))
    write_generation(tmp_path, GenerationSettings())
    assert json.loads((tmp_path / "generation_config.json").read_text()) == there
    tools = GenerationSettings(chat_template=TemplateText("a", {}, "b"), sampling={"top_k": 3})
    write_generation(tmp_path, tools)
    fields = json.loads((tmp_path / "generation_config.json").read_text())
    assert fields == {"eos_token_id": 2, "max_length": 20, "top_k": 3}
    assert (tmp_path / "additional_chat_templates" / "tool_use.jinja").read_text() == "b"
    assert not (tmp_path / "tokenizer_config.json").exists()
