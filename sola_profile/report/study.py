"""A study as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

from rich.console import Console
from rich.text import Text

from sola_profile.report.numbers import percent, significant, whole
from sola_profile.report.study_reach import exponent_sentences, exponent_table, of_variants, reach_table
from sola_profile.report.tables import Table
from sola_profile.report.terminal import print_table
from sola_profile.study.matrix_metrics import TOP, RowFigures
from sola_profile.study.study_result import (
    HELD,
    LARGEST_ERROR,
    DepthFigures,
    LayerFigures,
    SizeStudy,
    Study,
)

NONE = "–"
LOOKS = ("Entropy", "Spread", "Top 9 (even)", "3 × 3 (even)", "Distance (even)")
# mean and deviation over images
IMAGES = "Entropy over images"
# columns that a terminal has no room for; how well matrices agree is a sentence besides
PAGE_ONLY = ("Matrices", "Rows", "Spread", "Check", IMAGES)
# images that a headline names
MOST_NAMES = 6
_LEFT = frozenset({"Layer", "Layers", "Of", "Matrices", ""})


def layer_name(layer: LayerFigures) -> str:
    """``3.3 softmax``."""
    return f"{layer.place} {layer.mixer}"


def matrix_table(study: Study, size: SizeStudy) -> Table:
    """Where the rows of every layer look."""
    signed = any(layer.matrices and layer.rows_mean.negative > 0 for layer in size.layers)
    columns = (
        *("Layer", "Tokens", "Matrices", "Rows", *LOOKS),
        *(("Negative",) if signed else ()),
        *((IMAGES,) if len(study.images) > 1 else ()),
        *("Check", ""),
    )
    rows = tuple(_matrix_cells(layer, signed=signed, several=len(study.images) > 1) for layer in size.layers)
    return Table(f"Where rows look, at {size.resolution} on {study.images[0]}", columns, rows, _LEFT)


def _matrix_cells(layer: LayerFigures, *, signed: bool, several: bool) -> tuple[str, ...]:
    head = (layer_name(layer), whole(layer.tokens))
    if not layer.matrices:
        return (*head, *[NONE] * (len(LOOKS) + 3 + signed + several), layer.note)
    looks = layer.rows_mean
    return (
        *head,
        _matrices_text(layer),
        whole(layer.rows),
        *_look_cells(looks, layer.tokens),
        *((percent(looks.negative),) if signed else ()),
        *((_mean_and_deviation(layer.entropies),) if several else ()),
        f"{layer.error:.0e}",
        "" if layer.agrees else f"differs from the operator by {layer.error:.1e} of its largest result",
    )


def mean_table(size: SizeStudy) -> Table:
    """Where the rows of every layer's mean matrix look."""
    columns = ("Layer", "Mean of", *LOOKS)
    rows = tuple(
        (
            layer_name(layer),
            f"{layer.count} {layer.unit}{'s' if layer.count != 1 else ''}",
            *_look_cells(layer.mean, layer.tokens),
        )
        for layer in size.layers
        if layer.mean is not None
    )
    return Table(f"Where rows of the mean matrix look, at {size.resolution}", columns, rows, _LEFT)


def _look_cells(rows: RowFigures, tokens: int) -> tuple[str, ...]:
    return (
        f"{rows.entropy:.3f}",
        significant(rows.participation),
        f"{percent(rows.top)} ({100 * min(TOP, tokens) / tokens:.1f})",
        f"{percent(rows.local, 2)} ({100 * rows.local_chance:.2f})",
        f"{significant(rows.distance_px)} px ({significant(rows.distance_chance_px)})",
    )


def _mean_and_deviation(values: Sequence[float]) -> str:
    """Over images; a dash where they were not finished."""
    if len(values) < 2:
        return NONE
    deviation = f"{stdev(values):.3f}"
    return f"{fmean(values):.3f} ± {'< 0.001' if float(deviation) == 0 else deviation}"


def _matrices_text(layer: LayerFigures) -> str:
    used = len(layer.matrices)
    return f"all {used}" if used == layer.count else f"{used} of {layer.count}"


def rank_table(size: SizeStudy) -> Table:
    """Ranks, state, and what rows know of their query."""
    states = ("State", "Condition")
    columns = ("Layer", "Rank", "Effective", "Stable", "Of", *states, "Confused", "Scale")
    rows = tuple(_rank_cells(layer) for layer in size.layers if layer.matrices)
    table = Table(f"Ranks and queries at {size.resolution}", columns, rows, _LEFT)
    if all(layer.known_mean("state_rank") is None for layer in size.layers):
        return table.without(states[0]).without(states[1])
    return table


def _rank_cells(layer: LayerFigures) -> tuple[str, ...]:
    condition, confused, changed = (layer.known_mean(name) for name in ("state_condition", "confusion", "scale_change"))
    state_rank = layer.known_mean("state_rank")
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
    areas = ("ERF 20 %", *(percent(held, 0) for held in HELD[1:]))
    columns = ("Layer", "Uniform", "Apart", "Rank", "Residual", "Cosine", "High", "Gain", *areas)
    rows = tuple(
        (f"{depth.place} {layer.mixer}", *_depth_cells(depth))
        for depth, layer in zip(size.depths, size.layers, strict=True)
    )
    return Table(f"As depth grows, at {size.resolution}, {_images(study)}", columns, rows, _LEFT)


def _images(study: Study) -> str:
    count = len(study.images)
    return f"means over {count} images" if count > 1 else "of one image"


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


def headline(study: Study) -> str:
    """What was studied."""
    question = study.question
    sizes = ", ".join(map(str, question.sizes))
    return f"{question.model.spec.name} at {sizes}, {question.weights}, images: {images_text(study)}"


def images_text(study: Study) -> str:
    """Their names, as far as there are few of them; of a task the task."""
    task, names = study.question.samples.task, study.images
    if task is not None:
        return f"{len(names)} of task:{task}"
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def sentences(study: Study) -> Iterator[str]:
    """What was checked and found, and what to know besides."""
    layers = [layer for size in study.sizes for layer in size.layers if layer.matrices]
    wrong = [layer for layer in layers if not layer.agrees]
    if layers:
        used = max(len(layer.matrices) for layer in layers)
        rows = max(layer.rows for layer in layers)
        yield f"Written out: at most {used} matrices of a layer and {rows:,} rows of each; means over these are shown."
    if layers and not wrong:
        worst = max(layer.error for layer in layers)
        yield (
            f"All matrices of {len(layers)} layers give what the operators give, to {worst:.0e} of the largest result in float64."
        )
    if wrong:
        names = ", ".join(str(layer.place) for layer in wrong)
        yield f"Matrices that differ from the operator by more than {LARGEST_ERROR:.0e}: layers {names}."
    if study.question.weights.fresh:
        yield "The weights are fresh: figures say what the model is built to do, not what it learns."
    yield from exponent_sentences(study)
    yield from study.remarks
    if study.interrupted:
        yield "Interrupted: what follows it is missing."


def tables(study: Study) -> Iterator[Table]:
    """Those of the terminal, narrower than the page's."""
    for size in study.sizes:
        if size.layers:
            table = matrix_table(study, size)
            for column in PAGE_ONLY:
                table = table.without(column) if column in table.columns else table
            yield table
            yield rank_table(size)
        if size.depths:
            yield depth_table(study, size).without("Rank").without("High").without(percent(HELD[1], 0))
    for variant, horizons in of_variants(study).items():
        yield reach_table(variant, horizons)
        if any(stack.sigma_slope for each in horizons for stack in each.repeated):
            yield exponent_table(variant, horizons, short=True)


def print_study(study: Study, console: Console) -> None:
    """Tables and sentences; colours and width are the console's matter."""
    console.print(Text(headline(study), style="bold"))
    console.print()
    for table in tables(study):
        print_table(table, console)
        if "" in table.columns:
            for row in table.rows:
                if row[-1]:
                    console.print(Text(f" {row[0]}: {row[-1]}", style="bold red"))
    for sentence in sentences(study):
        console.print(Text(sentence))
