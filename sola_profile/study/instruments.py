"""The conductor of a study: matrices of every layer, features across layers, receptive fields, horizons."""

# B batch, N tokens, C channels, H height, W width

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from statistics import fmean

import torch
from torch import Tensor

from sola_profile.case import MAX_SIDE, Resolution
from sola_profile.machine import environment
from sola_profile.measuring import is_out_of_memory
from sola_profile.study.across import (
    ProductProbes,
    examples,
    high_frequency,
    linear_cka,
    rank_one_residual,
    token_similarity,
)
from sola_profile.study.effective_field import centre_gradient, window_share
from sola_profile.study.horizons import horizon_variants, study_horizon
from sola_profile.study.materialized import row_entropy, study_layer
from sola_profile.study.mixing import mixing_of
from sola_profile.study.study_result import (
    HELD,
    DepthFigures,
    Horizon,
    LayerFigures,
    SizeStudy,
    Study,
    StudyQuestion,
)
from sola_profile.study.taking import Taken, taking
from sola_profile.study.thumbnail import thumbnail
from sola_profile.workload import cpu_threads
from sola_vision.backbone import Backbone

# the sizes at which the paper's Fig. 3 shows what linear layers lose, for patches of so many pixels
HORIZON_SIZES = (Resolution(224, 224), Resolution(512, 512), Resolution(1024, 1024))
HORIZON_PATCH = 4

# deviation from uniform and from equal rows, rank
Product = tuple[float | None, float | None, float]


@dataclass
class _Features:
    """What all images of one size say, layer by layer."""

    residual: list[list[float]] = field(default_factory=list)
    similarity: list[list[float]] = field(default_factory=list)
    high_frequency: list[list[float]] = field(default_factory=list)
    gain: list[list[float]] = field(default_factory=list)
    products: list[Product | None] = field(default_factory=list)
    areas: list[dict[float, float]] = field(default_factory=list)
    examples: list[list[Tensor]] = field(default_factory=list)
    entropies: list[list[float | None]] = field(default_factory=list)


class Studying:
    """Answers one question; ``run`` goes through the work, ``result`` gives what is finished by then.

    Raises ``ValueError`` for an image that can't be read.
    """

    def __init__(self, question: StudyQuestion) -> None:
        self.question = question
        self.interrupted = False
        # matrices and operators are compared in float64
        self._exact = copy.deepcopy(question.model).cpu().double().eval()
        self._model = copy.deepcopy(question.model).cpu().float().eval()
        self._sizes: dict[Resolution, SizeStudy] = {}
        self._horizons: list[Horizon] = []
        self._remarks: list[str] = []
        self._names = question.samples.names
        question.samples.check(question.model.spec.in_channels, question.sizes)
        self._environment = environment()
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")

    def run(self) -> Iterator[str]:
        """Do the work; yields what is done next."""
        with cpu_threads(self.question.threads):
            for size in self.question.sizes:
                self._sizes[size] = SizeStudy(size)
                try:
                    yield from self._at(size)
                except NotFiniteError as error:
                    self._remarks.append(f"{size}: {error}; what is missing at this size can't be studied.")
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    self._remarks.append(f"{size}: memory ran out; what is missing at this size was not reached.")
            yield from self._theory()

    def _at(self, size: Resolution) -> Iterator[str]:
        features = _Features()
        yield from self._layers(size, features)
        yield from self._receptive_fields(size, features)
        self._finish(size, features)

    def _image(self, number: int, size: Resolution) -> Tensor:
        return self.question.samples.load(number, self.question.model.spec.in_channels, size)

    def _layers(self, size: Resolution, features: _Features) -> Iterator[str]:
        """Features of all images; matrices of the first."""
        for number, name in enumerate(self._names):
            yield f"{size}: forward pass of {name}"
            with torch.no_grad(), taking(self._exact) as taken:
                self._exact(self._image(number, size).double())
            if number == 0:
                yield from self._matrices(size, taken)
                yield f"{size}: product of the matrices"
                features.products = _products(taken)
            _check_finite(taken, name)
            _add_features(features, taken)
            with torch.no_grad():
                features.entropies.append([row_entropy(each, self.question.extent) for each in taken])

    def _matrices(self, size: Resolution, taken: list[Taken]) -> Iterator[str]:
        for each in taken:
            yield f"{size}: matrices of layer {each.layer.id} ({each.layer.letter})"
            _check_finite([each], self._names[0])
            side = self.question.model.spec.patch_size * 2 ** (each.layer.id.stage - 1)
            with torch.no_grad():
                figures = study_layer(each, self.question.extent, side)
            self._add_layer(size, figures)

    def _add_layer(self, size: Resolution, figures: LayerFigures) -> None:
        found = self._sizes[size]
        self._sizes[size] = replace(found, layers=(*found.layers, figures))

    def _receptive_fields(self, size: Resolution, features: _Features) -> Iterator[str]:
        """Gradients of the centre behind every layer, summed over images."""
        maps: list[Tensor] = []
        for number, name in enumerate(self._names):
            yield f"{size}: receptive fields on {name}"
            image = self._image(number, size).requires_grad_()
            with taking(self._model) as taken:
                self._model(image)
            found = []
            for each in taken:
                feature_map = each.block_out.unflatten(1, each.grid)
                found.append(centre_gradient(feature_map, image, keep=True))
            maps = [one + other for one, other in zip(maps, found, strict=True)] if maps else found
        features.areas = [{held: window_share(weight, held) for held in HELD} for weight in maps]
        fields = tuple(thumbnail(weight) for weight in maps)
        self._sizes[size] = replace(self._sizes[size], fields=fields)

    def _finish(self, size: Resolution, features: _Features) -> None:
        found = self._sizes[size]
        depths = []
        for index, layer in enumerate(found.layers):
            product = features.products[index]
            deviation, apart, rank = (None, None, None) if product is None else product
            depths.append(
                DepthFigures(
                    layer.place,
                    layer.is_softmax,
                    deviation,
                    apart,
                    rank,
                    residual=fmean(features.residual[index]),
                    similarity=fmean(features.similarity[index]),
                    high_frequency=fmean(features.high_frequency[index]),
                    gain=fmean(features.gain[index]),
                    areas=features.areas[index],
                )
            )
        cka = linear_cka([torch.cat(each) for each in features.examples])
        layers = tuple(
            replace(layer, entropies=tuple(value for value in each if value is not None))
            for layer, each in zip(found.layers, zip(*features.entropies, strict=True), strict=True)
        )
        self._sizes[size] = replace(found, layers=layers, depths=tuple(depths), cka=cka)

    def _theory(self) -> Iterator[str]:
        if not all(parameter.isfinite().all() for parameter in self._exact.parameters()):
            self._remarks.append("No horizon: some of the weights are NaN or infinite.")
            return
        sizes = sorted({*self.question.sizes, *_horizon_sizes(self._exact)}, key=lambda size: (size.pixels, size))
        try:
            for variant in horizon_variants(self._exact):
                for size in sizes:
                    yield f"{size}: horizon, {variant.name} decays"
                    self._horizons.append(study_horizon(variant, size))
        except Exception as error:
            if not (isinstance(error, ValueError) or is_out_of_memory(error)):
                raise
            self._remarks.append(f"The horizon ends here: {error}.")

    def result(self) -> Study:
        """What is known by now."""
        remarks = list(self._remarks)
        for size in self._sizes.values():
            remarks += [f"{size.resolution}: layer {each.place}: {each.note}." for each in size.layers if each.note]
        return Study(
            question=self.question,
            images=self._names,
            sizes=tuple(self._sizes.values()),
            horizons=tuple(self._horizons),
            remarks=tuple(dict.fromkeys(remarks)),
            environment=self._environment,
            started=self._started,
            interrupted=self.interrupted,
        )


def _horizon_sizes(model: Backbone) -> Iterator[Resolution]:
    """Sizes at which the model has the token grids of the paper's: what decays do depends on tokens, not on pixels."""
    patch = model.spec.patch_size
    for size in HORIZON_SIZES:
        sides = (max(1, side * patch // HORIZON_PATCH) for side in (size.height, size.width))
        yield Resolution(*(min(side, MAX_SIDE) for side in sides))


class NotFiniteError(ValueError):
    """A layer's features are NaN or infinite."""


def _check_finite(taken: list[Taken], name: str) -> None:
    for each in taken:
        if not each.is_finite:
            raise NotFiniteError(f"layer {each.layer.id} gives NaN or infinity on {name}")


def _products(taken: list[Taken]) -> list[Product | None]:
    """Deviation from uniform, from equal rows, and rank, behind every layer; None from an unknown matrix on."""
    probes, found = ProductProbes(taken[0].grid), list[Product | None]()
    known = True
    for each in taken:
        mixing = mixing_of(each.block.mixer, each.mixer_in[0], each.grid) if known else None
        known = mixing is not None
        if mixing is None:
            found.append(None)
            continue
        probes.through(mixing, each.grid)
        found.append((probes.deviation(), probes.apart(), probes.rank()))
    return found


def _add_features(features: _Features, taken: list[Taken]) -> None:
    """One image more."""
    if not features.residual:
        for name in ("residual", "similarity", "high_frequency", "gain", "examples"):
            setattr(features, name, [[] for _ in taken])
    for index, each in enumerate(taken):
        out = each.block_out[0]
        features.residual[index].append(rank_one_residual(out))
        features.similarity[index].append(token_similarity(out))
        features.high_frequency[index].append(high_frequency(out))
        before = high_frequency(each.mixer_in[0])
        features.gain[index].append(high_frequency(each.mixer_out[0]) / before if before else 0.0)
        features.examples[index].append(examples(out, each.grid, taken[-1].grid))
