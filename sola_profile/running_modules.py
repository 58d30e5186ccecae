"""Which modules of a model are running."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.module_tracker import ModuleTracker


class RunningModules(ModuleTracker):
    """PyTorch's tracker, which asks parameters that are handed from one module to another for no gradient where there is none."""

    def _fw_pre_hook(self, mod: Any, handed: Any) -> None:
        super()._fw_pre_hook(mod, handed if torch.is_grad_enabled() else ())

    def _fw_post_hook(self, mod: Any, handed: Any, result: Any) -> None:
        super()._fw_post_hook(mod, handed, result if torch.is_grad_enabled() else ())
