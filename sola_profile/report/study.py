"""A study as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isnan

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
_LEFT = frozenset({"Layer", "Mixer", "Of", "Matrices", "Decays", ""})


def layer_name(layer: LayerFigures) -> str:
    """``3.3 S``."""
    return f"{layer.place} {layer.letter}"


def matrix_table(study: Study, size: SizeStudy) -> Table:
    """Where the rows of every layer look."""
    title = f"Mixing matrices at {size.resolution}, {study.images[0]}: where rows look"
    columns = (
        *("Layer", "Mixer", "Tokens", "Matrices", "Rows", "Entropy", "Participation", "Top 9"),
        *("3 × 3", "By chance", "Distance", "By chance ", "Negative", "Check", ""),
    )
    return Table(title, columns, tuple(map(_matrix_cells, size.layers)), _LEFT)


def _matrix_cells(layer: LayerFigures) -> tuple[str, ...]:
    head = (layer_name(layer), layer.mixer, whole(layer.tokens))
    if not layer.matrices:
        return (*head, *[NONE] * 11, layer.note)
    wrong = "" if layer.agrees else f"differs from the operator by {layer.error:.1e} of its largest result"
    return (
        *head,
        _matrices_text(layer),
        whole(layer.rows),
        f"{layer.row_mean('entropy'):.3f}",
        significant(layer.row_mean("participation")),
        percent(layer.row_mean("top")),
        percent(layer.row_mean("local")),
        percent(layer.row_mean("local_chance")),
        f"{significant(layer.row_mean('distance_px'))} px",
        f"{significant(layer.row_mean('distance_chance_px'))} px",
        percent(layer.row_mean("negative")),
        f"{layer.error:.0e}" if layer.agrees else "differs",
        wrong,
    )


def _matrices_text(layer: LayerFigures) -> str:
    used = len(layer.matrices)
    units = f"{layer.unit}s" if layer.count != 1 else layer.unit
    return f"{used} {units}" if used == layer.count else f"{used} of {layer.count} {units}"


def rank_table(size: SizeStudy) -> Table:
    """Ranks, state, and what rows know of their query."""
    columns = (
        *("Layer", "Mixer", "Numerical rank", "Effective", "Stable", "Of"),
        *("State rank", "Condition", "Confused", "Scale changes"),
    )
    rows = tuple(_rank_cells(layer) for layer in size.layers if layer.matrices)
    return Table(f"Ranks and queries at {size.resolution}", columns, rows, _LEFT)


def _rank_cells(layer: LayerFigures) -> tuple[str, ...]:
    condition, confused, changed = (layer.mean(name) for name in ("state_condition", "confusion", "scale_change"))
    state_rank = layer.mean("state_rank")
    return (
        layer_name(layer),
        layer.mixer,
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
    """What becomes of the features."""
    areas = tuple(f"ERF {percent(held, 0)}" for held in HELD)
    columns = (
        *("Layer", "From uniform", "Rows apart", "Product rank", "Residual", "Similarity", "High freq."),
        *("Mixer's gain", *areas),
    )
    letters = study.question.model.spec.pattern.replace("|", "")
    rows = tuple(_depth_cells(depth, letter) for depth, letter in zip(size.depths, letters, strict=False))
    return Table(f"Across layers at {size.resolution}, means over {len(study.images)} images", columns, rows, _LEFT)


def _depth_cells(depth: DepthFigures, letter: str) -> tuple[str, ...]:
    products = (_share(depth.deviation), _share(depth.apart))
    rank = NONE if depth.product_rank is None else significant(depth.product_rank)
    return (
        f"{depth.place} {letter}",
        *products,
        rank,
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


def reach_table(horizons: Sequence[Horizon], title: str) -> Table:
    """The share of the image's height within which 99 % of an impulse's mass lies, layer by layer."""
    names = [str(each.resolution) for each in horizons]
    twins = [f"{name}, linear" for name in names]
    rows = []
    for index, reach in enumerate(horizons[0].own):
        own = [percent(each.own[index].measured_99) for each in horizons]
        linear = [percent(each.linear[index].measured_99) for each in horizons]
        rows.append((f"{reach.place}{' softmax' if reach.is_softmax else ''}", *own, *linear))
    return Table(title, ("Layer", *names, *twins), tuple(rows), _LEFT)


def variant_name(variant: str) -> str:
    """In words."""
    return "fixed per token" if variant == FIXED else "the model's own"


def reach_tables(study: Study) -> Iterator[Table]:
    """One for each kind of decay."""
    for variant in dict.fromkeys(each.variant for each in study.horizons):
        found = [each for each in study.horizons if each.variant == variant]
        title = f"Reach behind every layer, decays {variant_name(variant)}: distance that holds 99 %, in heights"
        yield reach_table(found, title)


def exponent_table(study: Study) -> Table:
    """One layer stacked on itself: how reach grows with depth."""
    columns = (
        *("Decays", "Size", "Layer", "Tokens", "σ of one", "Exponent of σ", "95 % interval"),
        *("of 99 %", "95 % interval ", "99 % over σ", "Reach of 32"),
    )
    rows = tuple(
        (variant_name(each.variant), str(each.resolution), *_exponent_cells(stack))
        for each in study.horizons
        for stack in each.repeated
    )
    return Table("Reach ~ depthᵇ of one linear layer stacked on itself", columns, rows, _LEFT)


def _exponent_cells(stack: Repeated) -> tuple[str, ...]:
    tails = [reach / sigma for reach, sigma in zip(stack.measured_99, stack.measured_sigma, strict=True)]
    return (
        str(stack.place),
        whole(stack.tokens),
        f"{significant(stack.predicted_sigma[0])} tokens",
        *_slope_cells(stack.sigma_slope),
        *_slope_cells(stack.reach_slope),
        f"{tails[0]:.2f} → {tails[-1]:.2f}",
        percent(stack.measured_99[-1] / stack.tokens),
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
    title = f"Decays per token at {horizon_.resolution}, {variant_name(horizon_.variant)}"
    return Table(title, columns, tuple(map(_decay_cells, horizon_.decays)), _LEFT)


def _decay_cells(decays: Decays) -> tuple[str, ...]:
    reach = horizon(decays.exact**2)
    return (
        str(decays.place),
        whole(decays.tokens),
        *(f"{rate:.3g}" for rate in (decays.slowest, decays.middle, decays.fastest)),
        percent(decays.favouring, 0),
        *(_tokens(sigma) for sigma in (decays.exact, decays.discrete, decays.limit)),
        _tokens(reach),
        significant(min(reach / decays.columns, decays.tokens / decays.columns)),
        significant(min(reach, decays.columns)),
    )


def _tokens(value: float) -> str:
    return NONE if isnan(value) else significant(value)


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
    fixed = [each for each in study.horizons if each.variant == FIXED] or list(study.horizons)
    stacks = [stack for each in fixed for stack in each.repeated]
    fitted = [stack for stack in stacks if stack.sigma_slope is not None]
    if not stacks:
        return
    if len(fitted) < len(stacks):
        yield (
            f"{len(stacks) - len(fitted)} of {len(stacks)} stacks reach the edge of the image within three layers, so that they have no exponent."
        )
    if not fitted:
        return
    slopes = [stack.sigma_slope.value for stack in fitted if stack.sigma_slope is not None]
    holding = sum(stack.sigma_slope is not None and stack.sigma_slope.holds_half for stack in fitted)
    yield (
        f"Fixed decays, σ ~ depthᵇ: b is {min(slopes):.3f} to {max(slopes):.3f} over {len(fitted)} stacks, and the interval of {holding} "
        "contains ½."
    )
    if holding < len(fitted):
        yield (
            "Where it doesn't, kernels lose their tails at the edge of the image, which flattens the line, or its points scatter "
            "so little that the interval is narrower than that loss."
        )
    tails = [stack.measured_99[0] / stack.measured_sigma[0] for stack in fitted]
    yield (
        f"One layer holds 99 % of its kernel within {min(tails):.2f} to {max(tails):.2f} σ, a Gaussian within 2.58: tails of a few layers are "
        "heavier, so that the distance of 99 % grows more slowly than σ."
    )


def tables(study: Study) -> Iterator[Table]:
    """Those of the terminal."""
    for size in study.sizes:
        if size.layers:
            yield matrix_table(study, size)
            yield rank_table(size)
        if size.depths:
            yield depth_table(study, size)
    yield from reach_tables(study)
    if study.horizons:
        yield exponent_table(study)


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


def is_everything(value: float) -> bool:
    """Whether a predicted reach is that of a layer which reaches all."""
    return value == inf
