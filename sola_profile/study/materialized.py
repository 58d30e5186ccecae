"""One layer with its mixing matrices written out: what they look like, and whether they are the operator's."""

# N tokens, R rows

from __future__ import annotations

import torch
from torch import Tensor

from sola_profile.study.matrix_metrics import (
    Geometry,
    RowFigures,
    RowSums,
    Spectrum,
    change,
    confusion,
    factor_values,
    rank_and_condition,
    row_values,
    spectrum,
)
from sola_profile.study.mixing import Mixing, mixing_of, spread
from sola_profile.study.study_result import Extent, LayerFigures, MatrixFigures
from sola_profile.study.taking import Taken
from sola_profile.study.thumbnail import thumbnail
from sola_vision.layers import Grid

# rows that are in memory at once
BLOCK = 128
# the same of the mean of matrices, which adds a copy
SMALL_BLOCK = 16
# the largest matrix whose singular values are those of all of it; of a larger one so many rows are taken
WHOLE = 1024
SPECTRUM_ROWS = 512
# rows of which every pair is compared, and rows of the mean of all matrices
FEW_ROWS = 64
# how much longer queries are made to see what their length says
FACTOR = 2.0


def study_layer(taken: Taken, extent: Extent, pixels: int) -> LayerFigures:
    """The figures of one layer on one image, in float64.

    ``pixels``: to the side of a token.
    """
    mixing = mixing_of(taken.block.mixer, taken.mixer_in[0], taken.grid)
    place, mixer = taken.layer.id, taken.layer.mixer.name
    if mixing is None:
        note = (
            f"the matrix of {type(taken.block.mixer).__name__} is not known, which needs a line in "
            "sola_profile.study.mixing.MIXINGS (docs/adding-a-mixer.md)"
        )
        return LayerFigures(place, taken.layer.letter, mixer, taken.is_softmax, taken.grid, note=note)
    numbers = mixing.sampled(extent.matrices)
    queries = torch.tensor(spread(mixing.tokens, extent.rows or mixing.tokens))
    sums = {number: RowSums() for number in numbers}
    errors = dict.fromkeys(numbers, 0.0)
    for block in queries.split(BLOCK):
        geometry = Geometry.of(block, taken.grid, pixels)
        for number in numbers:
            rows = mixing.rows(number, block)
            sums[number].add(rows, geometry)
            wrong = rows @ mixing.values(number) - mixing.operator_share(taken.operator[0], number)[block]
            errors[number] = max(errors[number], _largest(wrong))
    figures = [
        _matrix(mixing, number, sums[number], errors[number] / _scale(taken, mixing, number)) for number in numbers
    ]
    return LayerFigures(
        place,
        taken.layer.letter,
        mixer,
        taken.is_softmax,
        taken.grid,
        unit=mixing.unit,
        rows=len(queries),
        count=mixing.count,
        matrices=tuple(figures),
        mean=_mean_figures(mixing, taken.grid, pixels),
        centre=_centre_map(mixing, taken.grid),
    )


def row_entropy(taken: Taken, extent: Extent) -> float | None:
    """Entropy of the rows of a layer's matrices on one image, over few rows; None where the matrix isn't known."""
    mixing = mixing_of(taken.block.mixer, taken.mixer_in[0], taken.grid)
    if mixing is None:
        return None
    queries, sums = torch.tensor(spread(mixing.tokens, FEW_ROWS)), RowSums()
    # distances don't matter here
    geometry = Geometry.of(queries, taken.grid, 1)
    for number in mixing.sampled(extent.matrices):
        sums.add(mixing.rows(number, queries), geometry)
    return sums.figures().entropy


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max())


def _scale(taken: Taken, mixing: Mixing, number: int) -> float:
    """The largest magnitude of the operator's result, or 1 where that is nothing."""
    return _largest(mixing.operator_share(taken.operator[0], number)) or 1.0


def _matrix(mixing: Mixing, number: int, sums: RowSums, error: float) -> MatrixFigures:
    state = mixing.state(number)
    rank, condition = (None, None) if state is None else rank_and_condition(state)
    confused, changed = _by_query(mixing, number)
    return MatrixFigures(
        number + 1,
        sums.figures(),
        _spectrum(mixing, number),
        error=error,
        state_rank=rank,
        state_condition=condition,
        confusion=confused,
        scale_change=changed,
    )


def _spectrum(mixing: Mixing, number: int) -> Spectrum:
    factors, tokens = mixing.factors(number), mixing.tokens
    if factors is not None:
        return spectrum(factor_values(*factors), tokens, f"factors, {factors[0].size(1)}")
    taken = torch.tensor(spread(tokens, tokens if tokens <= WHOLE else SPECTRUM_ROWS))
    route = "all rows" if len(taken) == tokens else f"{len(taken)} of {tokens:,} rows"
    values = row_values(torch.cat([mixing.rows(number, block) for block in taken.split(BLOCK)]))
    return spectrum(values, tokens, route)


def _by_query(mixing: Mixing, number: int) -> tuple[float | None, float | None]:
    """Confusion, and how much rows change with the length of queries; None where rows don't depend on a query."""
    queries, longer = mixing.queries(number), mixing.with_queries_times(FACTOR)
    if queries is None or longer is None:
        return None, None
    taken = torch.tensor(spread(mixing.tokens, FEW_ROWS))
    rows = mixing.rows(number, taken)
    return confusion(rows, queries[taken]), change(rows, longer.rows(number, taken))


def _mean_figures(mixing: Mixing, grid: Grid, pixels: int) -> RowFigures:
    """Of the mean of all matrices, those that are not written out on their own as well."""
    sums = RowSums()
    for block in torch.tensor(spread(mixing.tokens, FEW_ROWS)).split(SMALL_BLOCK):
        sums.add(mixing.mean_rows(block), Geometry.of(block, grid, pixels))
    return sums.figures()


def _centre_map(mixing: Mixing, grid: Grid) -> Tensor:
    """The row of the token in the middle, the mean of all matrices, as a map."""
    centre = torch.tensor([grid[0] // 2 * grid[1] + grid[1] // 2])
    return thumbnail(mixing.mean_rows(centre)[0].view(grid))
