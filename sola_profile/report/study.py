"""A study as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from sola_profile.report.numbers import percent, significant, whole
from sola_profile.report.tables import Table
from sola_profile.report.terminal import rich_table
from sola_profile.study.horizons import FIXED
from sola_profile.study.reach import horizon
from sola_profile.study.study_result import (
    HELD,
    LARGEST_ERROR,
    Decays,
    DepthFigures,
    Horizon,
    LayerFigures,
    Repeated,
    SizeStudy,
    Slope,
    Study,
)

NONE = "–"
_LEFT = frozenset({"Layer", "Layers", "Of", "Matrices", ""})


def layer_name(layer: LayerFigures) -> str:
    """``3.3 softmax``."""
    return f"{layer.place} {layer.mixer}"


def matrix_table(study: Study, size: SizeStudy) -> Table:
    """Where the rows of every layer look."""
    signed = any(layer.matrices and layer.row_mean("negative") > 0 for layer in size.layers)
    columns = (
        *("Layer", "Tokens", "Matrices", "Rows", "Entropy", "Spread", "Top 9", "3 × 3 (chance)", "Distance (chance)"),
        *(("Negative",) if signed else ()),
        *("Check", ""),
    )
    rows = tuple(_matrix_cells(layer, signed=signed) for layer in size.layers)
    return Table(f"Where rows look, at {size.resolution} on {study.images[0]}", columns, rows, _LEFT)


def _matrix_cells(layer: LayerFigures, *, signed: bool) -> tuple[str, ...]:
    head = (layer_name(layer), whole(layer.tokens))
    if not layer.matrices:
        return (*head, *[NONE] * (9 if signed else 8), layer.note)
    local, chance = layer.row_mean("local"), layer.row_mean("local_chance")
    distance, far = layer.row_mean("distance_px"), layer.row_mean("distance_chance_px")
    return (
        *head,
        _matrices_text(layer),
        whole(layer.rows),
        f"{layer.row_mean('entropy'):.3f}",
        significant(layer.row_mean("participation")),
        percent(layer.row_mean("top")),
        f"{percent(local, 2)} ({100 * chance:.2f})",
        f"{significant(distance)} px ({significant(far)})",
        *((percent(layer.row_mean("negative")),) if signed else ()),
        f"{layer.error:.0e}",
        "" if layer.agrees else f"differs from the operator by {layer.error:.1e} of its largest result",
    )


def _matrices_text(layer: LayerFigures) -> str:
    used = len(layer.matrices)
    units = f"{layer.unit}s" if layer.count != 1 else layer.unit
    return f"{used} {units}" if used == layer.count else f"{used} of {layer.count} {units}"


def rank_table(size: SizeStudy) -> Table:
    """Ranks, state, and what rows know of their query."""
    columns = (
        *("Layer", "Numerical rank", "Effective", "Stable", "Of"),
        *("State rank", "Condition", "Confused", "Scale"),
    )
    rows = tuple(_rank_cells(layer) for layer in size.layers if layer.matrices)
    return Table(f"Ranks, states and queries at {size.resolution}", columns, rows, _LEFT)


def _rank_cells(layer: LayerFigures) -> tuple[str, ...]:
    condition, confused, changed = (layer.mean(name) for name in ("state_condition", "confusion", "scale_change"))
    state_rank = layer.mean("state_rank")
    return (
        layer_name(layer),
        significant(layer.rank_mean("numerical")),
        significant(layer.rank_mean("effective")),
        significant(layer.rank_mean("stable")),
        layer.matrices[0].spectrum.route,
        NONE if state_rank is None else significant(state_rank),
        NONE if condition is None else significant(condition),
        NONE if confused is None else percent(confused),
        NONE if changed is None else percent(changed),
    )


def depth_table(study: Study, size: SizeStudy) -> Table:
    """What becomes of products and features."""
    areas = tuple(f"ERF {percent(held, 0)}" for held in HELD)
    columns = ("Layer", "Uniform", "Apart", "Rank", "Residual", "Cosine", "High", "Gain", *areas)
    rows = tuple(
        (f"{depth.place} {layer.mixer}", *_depth_cells(depth))
        for depth, layer in zip(size.depths, size.layers, strict=True)
    )
    return Table(f"As depth grows, at {size.resolution}, means over {len(study.images)} images", columns, rows, _LEFT)


def _depth_cells(depth: DepthFigures) -> tuple[str, ...]:
    return (
        _share(depth.deviation),
        _share(depth.apart),
        NONE if depth.product_rank is None else significant(depth.product_rank),
        f"{depth.residual:.3f}",
        f"{depth.similarity:.3f}",
        significant(depth.high_frequency),
        significant(depth.gain),
        *(percent(depth.areas[held]) for held in HELD),
    )


def _share(value: float | None) -> str:
    """A share that may be many powers of ten below 1."""
    if value is None:
        return NONE
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def variant_name(variant: str) -> str:
    """In words."""
    return "decays fixed per token" if variant == FIXED else "the model's own decays"


def of_variants(study: Study) -> dict[str, list[Horizon]]:
    """The horizons of each kind of decay, from small images to large."""
    found: dict[str, list[Horizon]] = {}
    for each in study.horizons:
        found.setdefault(each.variant, []).append(each)
    return found


def reach_table(variant: str, horizons: Sequence[Horizon]) -> Table:
    """How far on the way to the end of the image 99 % of an impulse's mass lies, layer by layer."""
    names = [str(each.resolution) for each in horizons]
    rows = []
    for index, reach in enumerate(horizons[0].own):
        own = [percent(each.own[index].measured_99) for each in horizons]
        linear = [percent(each.linear[index].measured_99) for each in horizons]
        rows.append((f"{reach.place}{' softmax' if reach.is_softmax else ''}", *own, *linear))
    columns = ("Layer", *names, *(f"{name} linear" for name in names))
    title = f"Reach as a share of the image, {variant_name(variant)}"
    return Table(title, columns, tuple(rows), _LEFT)


def exponent_table(variant: str, horizons: Sequence[Horizon], *, short: bool = False) -> Table:
    """Layers of one stage stacked: how reach grows with depth. ``short``: stacks with an exponent alone."""
    columns = (
        *("Size", "Layers", "Tokens", "σ of one", "b of σ", "95 % interval", "b of 99 %", "95 % interval "),
        *("99 % over σ", "Deepest"),
    )
    rows = tuple(
        (str(each.resolution), *_exponent_cells(stack))
        for each in horizons
        for stack in each.repeated
        if stack.sigma_slope or not short
    )
    title = f"Reach ~ depthᵇ of one linear layer on itself, or of a stage's in turn, {variant_name(variant)}"
    return Table(title, columns, rows, _LEFT)


def tails(stack: Repeated) -> list[float]:
    """The distance of 99 % over the standard deviation, by depth; 2.58 for a Gaussian."""
    pairs = zip(stack.measured_99, stack.measured_sigma, strict=True)
    return [reach / sigma if sigma else 0.0 for reach, sigma in pairs]


def _exponent_cells(stack: Repeated) -> tuple[str, ...]:
    ratios = tails(stack)
    return (
        stack.name,
        whole(stack.tokens),
        significant(stack.predicted_sigma[0]),
        *_slope_cells(stack.sigma_slope),
        *_slope_cells(stack.reach_slope),
        f"{ratios[0]:.2f} → {ratios[-1]:.2f}",
        f"{stack.depths[-1]}: {percent(stack.last_share)}",
    )


def _slope_cells(slope: Slope | None) -> tuple[str, str]:
    if slope is None:
        return "at the edge", NONE
    return f"{slope.value:.3f}", f"{slope.low:.3f} – {slope.high:.3f}"


def decay_table(horizon_: Horizon) -> Table:
    """The rates of every layer, and what one layer reaches."""
    columns = (
        *("Layer", "Tokens", "Slowest w", "Median w", "Fastest w", "Favour far", "σ exact", "σ by sinh", "σ by 2/w²"),
        *("ξ", "ξ in rows", "ξ in columns"),
    )
    title = f"{variant_name(horizon_.variant).capitalize()} at {horizon_.resolution}, in tokens"
    return Table(title, columns, tuple(map(_decay_cells, horizon_.decays)), _LEFT)


def _decay_cells(decays: Decays) -> tuple[str, ...]:
    reach = horizon(decays.exact**2)
    return (
        str(decays.place),
        whole(decays.tokens),
        *(f"{rate:.3g}" for rate in (decays.slowest, decays.middle, decays.fastest)),
        percent(decays.favouring, 0),
        *(significant(sigma) for sigma in (decays.exact, decays.discrete, decays.limit)),
        significant(reach),
        significant(min(reach, decays.tokens) / decays.columns),
        significant(min(reach, decays.columns)),
    )


def headline(study: Study) -> str:
    """What was studied."""
    question = study.question
    sizes = ", ".join(map(str, question.sizes))
    weights = f"weights of {question.weights}" if question.weights else "fresh weights"
    return f"{question.model.spec.name} at {sizes}, {weights}, images: {', '.join(study.images)}"


def sentences(study: Study) -> Iterator[str]:
    """What was checked and found, and what to know besides."""
    layers = [layer for size in study.sizes for layer in size.layers if layer.matrices]
    wrong = [layer for layer in layers if not layer.agrees]
    if layers and not wrong:
        worst = max(layer.error for layer in layers)
        yield (
            f"All matrices of {len(layers)} layers give what the operators give, to {worst:.0e} of the largest result in float64."
        )
    if wrong:
        names = ", ".join(str(layer.place) for layer in wrong)
        yield f"Matrices that differ from the operator by more than {LARGEST_ERROR:.0e}: layers {names}."
    yield from exponent_sentences(study)
    yield from study.remarks
    if study.interrupted:
        yield "Interrupted: what follows it is missing."


def exponent_sentences(study: Study) -> Iterator[str]:
    """Whether reach grows as the square root of depth, and if not, why."""
    variants = of_variants(study)
    for variant, horizons in variants.items():
        stacks = [stack for each in horizons for stack in each.repeated]
        fitted = [stack for stack in stacks if stack.sigma_slope is not None]
        if not stacks:
            continue
        name = variant_name(variant).capitalize()
        if not fitted:
            yield f"{name}: every stack of one stage's layers reaches the edge of the image within three, so that none has an exponent."
            continue
        yield from _slope_sentences(name, len(stacks), fitted)


def _slope_sentences(name: str, count: int, fitted: Sequence[Repeated]) -> Iterator[str]:
    for title, stacks in (
        ("one layer stacked on itself", [stack for stack in fitted if stack.alike]),
        ("a stage's layers in turn", [stack for stack in fitted if not stack.alike]),
    ):
        slopes = [stack.sigma_slope for stack in stacks if stack.sigma_slope is not None]
        if slopes:
            values = [slope.value for slope in slopes]
            holding = sum(slope.holds_half for slope in slopes)
            below, above = (sum(wrong(slope) for slope in slopes) for wrong in (_is_below, _is_above))
            yield (
                f"{name}, {title}: σ ~ depthᵇ with b from {min(values):.3f} to {max(values):.3f}; of {len(slopes)} intervals {holding} contain ½, "
                f"{below} lie below and {above} above."
            )
    yield (
        "Below: the edge of the image cuts off what would have gone farther. Above: later layers of a stage are built to reach farther "
        f"than its first. {count - len(fitted)} of {count} stacks are at the edge within three layers and have no exponent."
    )
    first = [tails(stack)[0] for stack in fitted]
    yield (
        f"One layer holds 99 % of its kernel within {min(first):.2f} to {max(first):.2f} σ, a Gaussian within 2.58: channels that fade slowly "
        "make a tail that depth wears down, so that the distance of 99 % grows more slowly than σ."
    )


def _is_below(slope: Slope) -> bool:
    return slope.high < 0.5


def _is_above(slope: Slope) -> bool:
    return slope.low > 0.5


def tables(study: Study) -> Iterator[Table]:
    """Those of the terminal."""
    for size in study.sizes:
        if size.layers:
            yield matrix_table(study, size)
            yield rank_table(size)
        if size.depths:
            yield depth_table(study, size)
    for variant, horizons in of_variants(study).items():
        yield reach_table(variant, horizons)
        if any(stack.sigma_slope for each in horizons for stack in each.repeated):
            yield exponent_table(variant, horizons, short=True)


def print_study(study: Study, console: Console) -> None:
    """Tables and sentences; colours and width are the console's matter."""
    console.print(Text(headline(study), style="bold"))
    console.print()
    for table in tables(study):
        console.print(rich_table(table))
        if "" in table.columns:
            for row in table.rows:
                if row[-1]:
                    console.print(Text(f" {row[0]}: {row[-1]}", style="bold red"))
    for sentence in sentences(study):
        console.print(Text(sentence))
