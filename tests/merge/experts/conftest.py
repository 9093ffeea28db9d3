from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from merge.backbone import write_backbone
from merge.bundle import backbone_digest
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.experts import ExpertConfig, Sources, build_model
from merge.methods import find_method
from tests.merge.tiny import save_fine_tune, save_tiny


@dataclass(frozen=True)
class World:
    base: Checkpoint
    fine_tunes: dict[str, Checkpoint]
    backbone: Checkpoint

    def sources(self, **config: object) -> Sources:
        resolved = ExpertConfig.model_validate(config).resolved(calibrated=True)
        return Sources(self.base, self.backbone, backbone_digest(self.backbone.path), resolved)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root: Path = tmp_path_factory.mktemp("world")
    base = save_tiny(root / "base", dtype=torch.bfloat16)
    tunes = {
        name: open_checkpoint(save_fine_tune(base, root / name, seed, size=0.3))
        for seed, name in enumerate(("one", "two", "three"))
    }
    (root / "backbone").mkdir()
    method = find_method("task_arithmetic")
    merge = method.bind(method.parameters(), {})
    write_backbone(root / "backbone", open_checkpoint(base), tunes, merge)
    return World(open_checkpoint(base), tunes, open_checkpoint(root / "backbone"))


@pytest.fixture
def tuned(world: World) -> PreTrainedModel:
    return build_model(world.base.path)


@pytest.fixture
def model(world: World) -> PreTrainedModel:
    return build_model(world.base.path)
