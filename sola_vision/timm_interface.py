"""What timm, and code written for its models, asks of a backbone; timm itself isn't needed.

Names, arguments and meanings are those of timm 1.0 (``timm.models``, ``timm.optim``, ``timm.data``).
"""

# B batch, H height, W width, C channels

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from sola_vision import imagenet
from sola_vision.features import FeatureInfo, stage_indices
from sola_vision.layers import Grid
from sola_vision.layers.bridge import bridge_name
from sola_vision.layers.head import Head
from sola_vision.layers.maps import matrix_parameters
from sola_vision.layers.patches import as_map
from sola_vision.spec import BackboneSpec

POOLS = ("avg", "")
# the side that ImageNet's models are usually trained at; any other is as good
_SIDE = 224


class TimmInterface(nn.Module):
    """Classifier, features and groups of parameters of a backbone, by the names that timm's models have.

    ``head`` is None in a model that returns feature maps. ``global_pool``: ``"avg"``, or ``""`` for a model without
    pooling and classifier, which returns the last feature map.
    """

    spec: BackboneSpec
    feature_info: FeatureInfo
    out_indices: tuple[int, ...]
    stages: nn.ModuleList
    bridges: nn.ModuleDict
    head: Head | None
    global_pool: str

    def run_stages(self, image: Tensor, keep: Collection[int]) -> list[tuple[Tensor, Grid]]:
        """Tokens and grid behind each stage of ``keep``, counted from 0; nothing runs behind the last of them."""
        raise NotImplementedError

    @property
    def in_chans(self) -> int:
        """Channels of the image."""
        return self.spec.in_channels

    @property
    def num_classes(self) -> int:
        """Width of the classifier, 0 without one."""
        return 0 if self.head is None else self.spec.num_classes

    @property
    def num_features(self) -> int:
        """Channels of the last feature map."""
        return self.spec.dims[len(self.stages) - 1]

    @property
    def head_hidden_size(self) -> int:
        """Channels of what the classifier takes."""
        return self.num_features

    def get_classifier(self) -> nn.Module:
        """The last linear map; an identity in a model without classes."""
        return nn.Identity() if self.head is None else self.head.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in place, on the old one's device and in its dtype; 0 classes for none.

        ``global_pool``: ``"avg"``, ``""`` for none, which needs 0 classes, or None to leave it as it is.
        """
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in POOLS:
            raise ValueError(f"global_pool: expected 'avg' or '' for none, got {pool!r}")
        if not pool and num_classes:
            raise ValueError(f"global_pool: a model without pooling has no classifier, got num_classes={num_classes!r}")
        spec = replace(self.spec, num_classes=num_classes)
        if self.head is None:
            if num_classes:
                raise ValueError(f"num_classes: a model that returns feature maps has no head, got {num_classes!r}")
            return
        self.spec, self.global_pool = spec, pool
        self.head.reset_classifier(num_classes)

    def forward_features(self, image: Tensor) -> Tensor:
        """Images ``(B, C_in, H, W)`` → the last stage's feature map ``(B, C, H', W')``, behind the head's norm if any."""
        [(tokens, grid)] = self.run_stages(image, (len(self.stages) - 1,))
        return as_map(tokens if self.head is None else self.head.norm(tokens), grid)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """What ``forward_features`` gave → scores ``(B, num_classes)``; ``pre_logits`` stops before the classifier."""
        if self.head is None:
            raise ValueError("forward_head: a model that returns feature maps has no head")
        if not self.global_pool:
            return features
        return self.head.classify(features.flatten(2).mean(2), pre_logits=pre_logits)

    def forward_intermediates(
        self,
        image: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps of some stages, with what ``forward_features`` gives before them unless ``intermediates_only``.

        Args:
            image: ``(B, C_in, H, W)``.
            indices: None for all stages, n for the last n, or a list of stages counted from 0; maps come in order.
            norm: normalise the last stage's map by the head's norm, as ``forward_features`` does.
            stop_early: end behind the last of the stages; its map then takes the place of the last one.
            output_fmt: ``"NCHW"``.
            intermediates_only: return the maps alone, for which nothing runs behind the last of them.

        Raises:
            ValueError: names the argument, what came and what is allowed.

        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: expected 'NCHW', got {output_fmt!r}")
        wanted = stage_indices("indices", indices, len(self.stages))
        final = wanted[-1] if stop_early or intermediates_only else len(self.stages) - 1
        at_end = final == len(self.spec.dims) - 1
        if norm and at_end and self.head is None:
            raise ValueError("norm: expected False, since the norm is the head's and this model has none")
        kept = sorted({*wanted, final})
        tokens = dict(zip(kept, self.run_stages(image, kept), strict=True))
        maps = {index: as_map(x, grid) for index, (x, grid) in tokens.items()}
        features = maps[final]
        if self.head is not None and at_end and (norm or not intermediates_only):
            x, grid = tokens[final]
            features = as_map(self.head.norm(x), grid)
        if norm:
            maps[final] = features
        found = [maps[index] for index in wanted]
        return found if intermediates_only else (features, found)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the feature maps of these stages don't need, and return the stages, counted from 0.

        Stages behind the last one go with the bridges that end there, and with the head, whose norm is of another
        width. ``prune_head``: without classifier and pooling; with ``prune_norm`` without the whole head. A model that
        is left without a head returns these maps.
        """
        kept = stage_indices("indices", indices, len(self.stages))
        self.out_indices, self.feature_info = kept, FeatureInfo(self.feature_info, kept)
        count = kept[-1] + 1
        if count < len(self.stages) or (prune_head and prune_norm):
            self.head = None
        elif prune_head:
            self.reset_classifier(0, "")
        self.stages = self.stages[:count]
        bridges = tuple(bridge for bridge in self.spec.bridges if bridge.target.stage <= count)
        for gone in set(self.spec.bridges) - set(bridges):
            del self.bridges[bridge_name(gone)]
        self.spec = replace(self.spec, bridges=bridges)
        return list(kept)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters by depth, for ``layer_decay``: embedding, layers in order (``coarse``: stages), classifier.

        A merging is of the layer behind it, a bridge of the layer that it ends at, the head's norm of the last layer.
        The classifier matches none, which timm takes for the deepest.
        """
        bridges = []
        for bridge in self.spec.bridges:
            stage, layer = bridge.target.stage - 1, bridge.target.layer - 1
            bridges.append((rf"^bridges\.{bridge_name(bridge)}\.", (stage,) if coarse else (stage, layer)))
        merging = [] if coarse else [(r"^stages\.(\d+)\.merging", (0,))]
        layers = [(r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        last = len(self.spec.dims) - 1
        norm = (last,) if coarse else (last, self.spec.depths[last] - 1)
        return {"embedding": r"^embedding", "layers": [*merging, *layers, *bridges, (r"^head\.norm", norm)]}

    def no_weight_decay(self) -> set[str]:
        """The names of all parameters but the matrices of linear maps and convolutions; timm's optimisers ask for them."""
        matrices = matrix_parameters(self)
        return {name for name, parameter in self.named_parameters() if id(parameter) not in matrices}


def pretrained_cfg(spec: BackboneSpec) -> dict[str, Any]:
    """What timm wants to know of a model before it is built: how images are fed to it, and where its ends are."""
    channels, grid = spec.in_channels, spec.token_grids(_SIDE, _SIDE)[-1]
    mean, deviation = (
        values if channels == len(values) else (sum(values) / len(values),) * channels
        for values in (imagenet.MEAN, imagenet.DEVIATION)
    )
    return {
        "architecture": spec.name,
        "num_classes": spec.num_classes,
        "input_size": (channels, _SIDE, _SIDE),
        "fixed_input_size": False,
        "pool_size": grid,
        "crop_pct": imagenet.CROP,
        "interpolation": "bicubic",
        "mean": mean,
        "std": deviation,
        "first_conv": "embedding.projection",
        "classifier": "head.classifier",
    }
