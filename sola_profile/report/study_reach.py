"""The horizon theory of a study as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

from sola_profile.report.numbers import percent, significant, whole
from sola_profile.report.tables import Table
from sola_profile.study.horizons import FIXED
from sola_profile.study.reach import horizon
from sola_profile.study.study_result import Decays, Horizon, Reach, Repeated, Slope, Study

NONE = "–"
# a second column of intervals
INTERVAL_99 = "95 % interval "
_LEFT = frozenset({"Layer", "Layers"})


def variant_name(variant: str) -> str:
    """In words."""
    return "fresh decays, fixed per token" if variant == FIXED else "the model's own decays"


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
    title = f"Reach as a share of the image (99 %: all of it), {variant_name(variant)}"
    return Table(title, columns, tuple(rows), _LEFT)


def exponent_table(variant: str, horizons: Sequence[Horizon], *, short: bool = False) -> Table:
    """Layers of one stage stacked: how reach grows with depth. ``short``: stacks with an exponent alone, in fewer columns."""
    columns = (
        *("Size", "Layers", "Tokens", "σ of one", "b of σ", "95 % interval", "b of 99 %", INTERVAL_99),
        *("99 % over σ", "Deepest"),
    )
    rows = tuple(
        (str(each.resolution), *_exponent_cells(stack))
        for each in horizons
        for stack in each.repeated
        if stack.sigma_slope or not short
    )
    title = f"Reach ~ depthᵇ of one linear layer on itself, or of a stage's in turn, {variant_name(variant)}"
    table = Table(title, columns, rows, _LEFT)
    return table.without("Tokens").without(INTERVAL_99) if short else table


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
        "Below: the edge of the image cuts off what would have gone farther, or later layers of a stage reach less far than its first. "
        f"Above: they reach farther. {count - len(fitted)} of {count} stacks are at the edge within three layers and have no exponent."
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


def stack_table(horizon_: Horizon, *, linear: bool) -> Table:
    """Predicted beside measured, behind every layer of the model or of its linear twin."""
    columns = (
        *("Layer", "Tokens", "σ predicted", "σ measured", "ξ predicted", "ξ in rows", "ξ in columns"),
        "99 % measured",
    )
    which = "all linear" if linear else "the pattern"
    title = f"Stack of {which} at {horizon_.resolution}, {variant_name(horizon_.variant)}, in tokens"
    reaches = horizon_.linear if linear else horizon_.own
    return Table(title, columns, tuple(map(_stack_cells, reaches)), _LEFT)


def _stack_cells(reach: Reach) -> tuple[str, ...]:
    predicted, measured = reach.tokens * reach.predicted_sigma, reach.tokens * reach.measured_sigma
    xi = inf if reach.predicted_sigma == inf else horizon(predicted**2)
    return (
        f"{reach.place}{' softmax' if reach.is_softmax else ''}",
        whole(reach.tokens),
        significant(predicted),
        significant(measured),
        significant(xi),
        significant(min(xi, reach.tokens) / reach.columns),
        significant(min(xi, reach.columns)),
        significant(reach.measured_99 * reach.farthest),
    )
