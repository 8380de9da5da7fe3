"""Lightning: a module that holds a network, trained, saved and loaded."""

from __future__ import annotations

import tempfile
from typing import Any

import lightning
import timm
import torch
from timm.utils import ModelEmaV3

from .common import images


class _Module(lightning.LightningModule):
    def __init__(self, name: str = "test_resnet", classes: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = timm.create_model(name, num_classes=classes)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        return torch.nn.functional.cross_entropy(self.model(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def _fit(folder: str) -> tuple[_Module, lightning.Trainer]:
    batches = [(images(), torch.tensor([0, 1]))] * 2
    trainer = lightning.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=folder,
    )  # fmt: skip
    module = _Module()
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return module, trainer


def training() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _fit(folder)


def saved_and_loaded() -> None:
    with tempfile.TemporaryDirectory() as folder:
        module, trainer = _fit(folder)
        trainer.save_checkpoint(f"{folder}/last.ckpt")
        again = _Module.load_from_checkpoint(f"{folder}/last.ckpt")
    weights = module.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in again.model.state_dict().items())


def averaged_weights() -> None:
    module = _Module()
    average = ModelEmaV3(module.model, decay=0.9)
    average.update(module.model)
