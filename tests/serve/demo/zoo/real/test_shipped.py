import json

from serve.demo.zoo.real.tasks import TASKS, adapter_dirs


def test_each_task_has_a_small_adapter():
    adapters = adapter_dirs()
    assert set(adapters) == {task.name for task in TASKS}
    for directory in adapters.values():
        assert json.loads((directory / "adapter_config.json").read_text())["peft_type"] == "LORA"
    sizes = [path.stat().st_size for directory in adapters.values() for path in directory.iterdir()]
    assert sum(sizes) <= 40_000_000
