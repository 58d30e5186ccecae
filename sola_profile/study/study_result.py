"""What a study asks and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from statistics import fmean

from torch import Tensor

from sola_profile.case import Resolution, whole_number
from sola_profile.machine import Environment
from sola_profile.study.images import Samples
from sola_profile.study.matrix_metrics import RowFigures, Spectrum
from sola_profile.study.weights import Weights
from sola_vision.backbone import Backbone
from sola_vision.layers import Grid
from sola_vision.spec import LayerId

# relative difference between a matrix times its values and the operator, in float64, that rounding explains
LARGEST_ERROR = 1e-9
# shares of the gradient whose areas are given, as RepLKNet does
HELD = (0.2, 0.3, 0.5, 0.99)


@dataclass(frozen=True)
class Extent:
    """How much is looked at: ``matrices`` per layer and ``rows`` of each (0: all)."""

    matrices: int = 8
    rows: int = 512

    def __post_init__(self) -> None:
        for name, least in (("matrices", 1), ("rows", 0)):
            value = whole_number(name, getattr(self, name), least)
            if value < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {value}")
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class StudyQuestion:
    """What is studied: a model at some sizes. ``weights``: where they come from, for the report."""

    model: Backbone
    sizes: tuple[Resolution, ...]
    samples: Samples
    extent: Extent = field(default_factory=Extent)
    weights: Weights = field(default_factory=Weights)
    threads: int | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ValueError("sizes: expected at least one")


@dataclass(frozen=True)
class MatrixFigures:
    """One matrix; ``number`` from 1, its head or channel. ``error``: of A·v against the operator, relative to its largest.

    ``state_rank`` and ``state_condition``: of the key–value state of a head of linear attention. ``confusion``: share of token pairs
    with far queries and near rows. ``scale_change``: how much rows change when queries are twice as long, 0 to 1. None
    where a mixer has no such thing.
    """

    number: int
    rows: RowFigures
    spectrum: Spectrum
    error: float
    state_rank: int | None = None
    state_condition: float | None = None
    confusion: float | None = None
    scale_change: float | None = None


@dataclass(frozen=True)
class LayerFigures:
    """One layer's matrices: ``matrices`` of its ``count``, over ``rows`` of their rows.

    ``mean``: of the mean of all its matrices, over at most 64 rows. ``centre``: that mean's row of the token in the middle, as a map.
    ``entropies``: of the rows of every image, means over the same matrices and at most 64 rows. ``note``: why there is no matrix.
    """

    place: LayerId
    letter: str
    mixer: str
    is_softmax: bool
    grid: Grid
    unit: str = ""
    rows: int = 0
    count: int = 0
    matrices: tuple[MatrixFigures, ...] = ()
    mean: RowFigures | None = None
    centre: Tensor | None = None
    entropies: tuple[float, ...] = ()
    note: str = ""

    @property
    def tokens(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    @property
    def error(self) -> float:
        """The largest of its matrices."""
        return max((matrix.error for matrix in self.matrices), default=0.0)

    @property
    def agrees(self) -> bool:
        """Whether the matrices are the operator's."""
        return self.error <= LARGEST_ERROR

    @property
    def rows_mean(self) -> RowFigures:
        """The means of row figures over the matrices."""
        found = [matrix.rows for matrix in self.matrices]
        names = [each.name for each in fields(RowFigures)]
        return RowFigures(*(fmean(getattr(rows, name) for rows in found) for name in names))

    def rank_mean(self, name: str) -> float:
        """The mean of a rank over the matrices."""
        return fmean(getattr(matrix.spectrum, name) for matrix in self.matrices)

    def known_mean(self, name: str) -> float | None:
        """The mean of another figure over the matrices that have it."""
        known = [value for matrix in self.matrices if (value := getattr(matrix, name)) is not None]
        return fmean(known) if known else None


@dataclass(frozen=True)
class DepthFigures:
    """The features behind a layer, means over images.

    ``deviation``: of the product of all mixing matrices so far from uniform, 1 for the identity and 0 for uniform. ``apart``: of
    its rows from each other, in the same unit. ``product_rank``: effective rank of the product as far as its probes see. All three
    None behind a layer whose matrix isn't known, the first two for one token. ``residual``: distance of the features from rank one over their size.
    ``similarity``: mean cosine between tokens. ``high_frequency``: ``|x − mean x| / |mean x|``; ``gain``: that ratio behind the mixer over
    that before it. ``areas``: share of the gradient → share of the image that holds it.
    """

    place: LayerId
    is_softmax: bool
    deviation: float | None
    apart: float | None
    product_rank: float | None
    residual: float
    similarity: float
    high_frequency: float
    gain: float
    areas: Mapping[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SizeStudy:
    """Everything at one size. ``fields``: gradient map of the centre behind each layer. ``cka``: layer by layer."""

    resolution: Resolution
    layers: tuple[LayerFigures, ...] = ()
    depths: tuple[DepthFigures, ...] = ()
    cka: tuple[tuple[float, ...], ...] = ()
    fields: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Reach:
    """How far information has come behind one layer of a stack, all contents equal.

    Standard deviations are shares of the image's height (a raster-ordered image is N tokens high). ``predicted_sigma``: from the
    sum of the layers' variances, infinite behind one that reaches everything; ``measured_sigma``: of the kernel itself.
    ``measured_99``: the distance within which 99 % of it lies, as a share of ``farthest``, the tokens from the middle to the far end.
    """

    place: LayerId
    is_softmax: bool
    tokens: int
    columns: int
    farthest: int
    predicted_sigma: float
    measured_sigma: float
    measured_99: float


@dataclass(frozen=True)
class Decays:
    """The rates of a layer per token, and what they make of one layer: standard deviations in tokens.

    ``exact``: pooled, of the sequence at hand with the layer's own bonus. ``discrete``: ``√mean 1/(2 sinh²(w/2))``, ``limit``: ``√mean 2/w²``,
    both for an endless sequence and infinite where a channel favours far tokens. ``favouring``: share of such channels.
    """

    place: LayerId
    tokens: int
    columns: int
    slowest: float
    middle: float
    fastest: float
    exact: float
    discrete: float
    limit: float
    favouring: float
    sigmas: tuple[float, ...] = ()


@dataclass(frozen=True)
class Slope:
    """Exponent b of ``reach ~ depth^b`` by least squares of the logarithms, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def holds_half(self) -> bool:
        """Whether the interval contains ½."""
        return self.low <= 0.5 <= self.high


@dataclass(frozen=True)
class Profile:
    """A measured kernel beside the predicted Gaussian, over the distance in tokens.

    ``difference``: half the sum of their differences, 0 to 1.
    """

    depth: int
    distance: tuple[float, ...]
    measured: tuple[float, ...]
    predicted: tuple[float, ...]
    difference: float


@dataclass(frozen=True)
class Repeated:
    """Layers of one stage stacked in turn, or one stacked on itself: reach in tokens after ``depths`` of them.

    ``sigma_slope`` and ``reach_slope``: exponents of ``measured_sigma`` and ``measured_99``, over the depths inside the image; None where
    these are too few.
    """

    places: tuple[LayerId, ...]
    tokens: int
    columns: int
    depths: tuple[int, ...]
    predicted_sigma: tuple[float, ...]
    measured_sigma: tuple[float, ...]
    measured_99: tuple[float, ...]
    sigma_slope: Slope | None
    reach_slope: Slope | None
    profiles: tuple[Profile, ...] = ()

    @property
    def name(self) -> str:
        """``3.1 – 3.6``."""
        first, last = self.places[0], self.places[-1]
        return str(first) if first == last else f"{first} – {last}"

    @property
    def alike(self) -> bool:
        """Whether it is one layer stacked on itself."""
        return len(self.places) == 1

    @property
    def last_share(self) -> float:
        """The distance of 99 % behind the last layer, as a share of the way from the middle to the far end."""
        return self.measured_99[-1] / max(1, self.tokens // 2)


@dataclass(frozen=True)
class Horizon:
    """The theory at one size under one kind of decay. ``variant``: ``own`` or ``fixed``; ``linear``: of the all-linear twin."""

    variant: str
    resolution: Resolution
    decays: tuple[Decays, ...]
    own: tuple[Reach, ...]
    linear: tuple[Reach, ...]
    repeated: tuple[Repeated, ...]


@dataclass(frozen=True)
class Study:
    """The answer. ``images``: their names. ``remarks``: what a reader must know besides."""

    question: StudyQuestion
    images: tuple[str, ...]
    sizes: tuple[SizeStudy, ...]
    horizons: tuple[Horizon, ...]
    remarks: tuple[str, ...]
    environment: Environment
    started: str
    interrupted: bool = False

    @property
    def agrees(self) -> bool:
        """Whether every matrix is the operator's."""
        return all(layer.agrees for size in self.sizes for layer in size.layers)
