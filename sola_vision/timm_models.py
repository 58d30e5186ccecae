"""The presets as models of timm: after ``import sola_vision.timm_models``, ``timm.create_model("sola_t")`` builds one.

Needs timm. There are no published weights: ``pretrained=True`` is timm's error that says so, unless
``pretrained_cfg_overlay`` names a file of your own, such as ``{"file": "model.safetensors"}``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, register_notrace_module
from torch import nn

from sola_vision.backbone import LEAF_MODULES, Backbone
from sola_vision.factory import create_model
from sola_vision.presets import get_spec, list_models
from sola_vision.timm_interface import pretrained_cfg

# timm looks here for what it must know before it builds
default_cfgs = generate_default_cfgs({name: pretrained_cfg(get_spec(name)) for name in list_models()})

# timm's keyword → that of sola_vision.create_model; and those that are no part of a spec
_KEYWORDS = {
    "num_classes": "num_classes",
    "in_chans": "in_channels",
    "drop_path_rate": "drop_path",
    "pattern": "pattern",
    "mixers": "mixers",
    "bridges": "bridges",
}
_OTHERS = ("global_pool", "drop_rate", "device", "dtype")


def _backbone(
    model: str,
    *,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Backbone:
    """A preset by timm's keywords; ``drop_rate`` is dropout before the classifier."""
    for name in options:
        if name not in _KEYWORDS:
            known = ", ".join((*_KEYWORDS, *_OTHERS))
            raise TypeError(
                f"{model}: unexpected keyword {name!r}; allowed: {known}; with features_only=True out_indices"
            )
    if not 0 <= drop_rate < 1:
        raise ValueError(f"drop_rate: expected a rate in [0, 1), got {drop_rate!r}")
    with nullcontext() if device is None else torch.device(device):
        built = create_model(model, **{_KEYWORDS[name]: value for name, value in options.items()})
    if global_pool != built.global_pool:
        built.reset_classifier(built.num_classes, global_pool)
    assert built.head is not None
    built.head.drop_rate = drop_rate
    return built.to(dtype=dtype)


def _entry(name: str) -> Callable[..., nn.Module]:
    """The function that timm calls for this preset."""

    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter", **options.pop("feature_cfg", {})}
        kind = options.get("feature_cls", features["feature_cls"])
        if isinstance(kind, str) and kind != "getter":
            raise ValueError(f"feature_cls: expected 'getter', since bridges run between stages, got {kind!r}")
        return build_model_with_cfg(partial(_backbone, name), name, pretrained, feature_cfg=features, **options)

    build.__name__ = build.__qualname__ = name
    return register_model(build)


for _name in list_models():
    globals()[_name] = _entry(_name)
for _module in LEAF_MODULES:
    register_notrace_module(_module)
