"""What the tables don't say: how the cost grows, where layers overtake each other, what was left out."""

from __future__ import annotations

from collections.abc import Iterator

from sola_profile.compare.growth_class import FEWEST_SIZES, GrowthClass
from sola_profile.compare.scaling import Fit, Slope
from sola_profile.cost.breakdown import FORMULAS
from sola_profile.measure.statistics import Interval
from sola_profile.report.numbers import exact, percent, polynomial_text, seconds_per, significant, tokens_and_side
from sola_profile.report.tables import contender_name
from sola_profile.result import Contender, Profile

# runnable threads over a minute, beyond which something else was running
QUIET = 0.5


def polynomial_sentences(profile: Profile) -> Iterator[str]:
    """The formula of the matrix products and its crossovers."""
    contender = profile.model
    complexity, patch = contender.scaling.complexity, contender.patch
    if contender.spec is None:
        yield from _formula_sentences(contender, profile.settings.batch)
    elif complexity is not None:
        total = complexity.total
        yield (
            f"MACs of one image = {exact(total.a)}·N² + {exact(total.b)}·N + {exact(total.c)}, N = H/{patch} · W/{patch} "
            f"tokens of stage 1; exact where both sides divide by {contender.spec.stride}."
        )
    if complexity is None:
        return
    if complexity.attention_overtakes is None:
        never = "The softmax layers never cost more MACs than the rest."
        yield never if complexity.total.a else "No layer is quadratic in N."
        return
    if complexity.softmax_overtakes is None:
        yield f"The part in N² costs more MACs than all else from N = {tokens_and_side(complexity.attention_overtakes, patch)}."
        return
    yield (
        f"Softmax layers cost more MACs than all others from N = {tokens_and_side(complexity.softmax_overtakes, patch)}; "
        f"their N × N products alone from {tokens_and_side(complexity.attention_overtakes, patch)}."
    )


def _formula_sentences(contender: Contender, batch: int) -> Iterator[str]:
    found = contender.growth
    if found is None:
        return
    if found.macs is None:
        yield f"MACs have no formula in the size of the image: {found.why.rstrip('.')}. Every size is counted by itself."
        return
    what = "one image" if batch == 1 else f"a batch of {batch}"
    yield f"MACs of {what} = {polynomial_text(found.macs)}, {found.definition}; {found.route}."


def witness_sentences(profile: Profile) -> Iterator[str]:
    """What a witness can't see, and why one gave no count."""
    found = [row.agreement for row in profile.model.rows if row.agreement is not None]
    for name, operators in {name: ops for each in found for name, ops in each.blind.items()}.items():
        yield f"{name} {'are' if name == FORMULAS else 'is'} blind to {', '.join(operators)}."
    for name, reason in {name: why for each in found for name, why in each.absent.items()}.items():
        yield f"{name} gave no count: {reason.rstrip('.')}."


def load_sentences(profile: Profile) -> Iterator[str]:
    """That other programs ran before anything was measured."""
    load = profile.environment.load_1min
    if profile.budget_s is not None and load > QUIET:
        yield f"The load was {load:.1f} before, so measured times may be too long."


def refusal_sentences(profile: Profile) -> Iterator[str]:
    """Sizes that a model doesn't take."""
    for contender in profile.contenders:
        for size, reason in contender.refused.items():
            yield f"{contender.name} doesn't take {size}: {reason.rstrip('.')}."


def growth_sentences(contender: Contender, profile: Profile) -> Iterator[str]:
    """Local slopes and the fit of measured latency."""
    scaling, patch = contender.scaling, contender.patch
    if scaling.macs_slopes:
        yield f"Local slope of MACs in N (1 linear, 2 quadratic): {_slopes(scaling.macs_slopes)}."
    if scaling.latency_slopes:
        yield f"Local slope of latency: {_slopes(scaling.latency_slopes)}."
    if scaling.latency_fit is not None:
        yield from _fit_sentences(scaling.latency_fit, patch, profile)
    elif profile.budget_s is not None:
        yield f"No fit of latency: it takes three measured sizes.{_advice(profile)}"
    if scaling.latency_class is not None:
        yield _class_sentence(scaling.latency_class)
    yield from _crossover_sentences(profile)


def _class_sentence(found: GrowthClass) -> str:
    """The class of growth, or why none is named."""
    if not found.open:
        return f"No class of growth is named: it takes {FEWEST_SIZES} measured sizes."
    weights = ", ".join(percent(found.weights[name], 0) for name in found.open)
    noise = f"with errors of ± {percent(found.noise)} a size"
    if found.name is not None:
        return f"Growth of latency over these sizes: {found.name} in N ({weights} of the weight, {noise})."
    advice = "no single further size would be expected to tell"
    if found.separating_side is not None:
        advice = f"--res {found.separating_side} as well would be expected to tell"
    return f"These sizes can't tell whether latency is {' or '.join(found.open)} in N (weights {weights}, {noise}); {advice}."


def _crossover_sentences(profile: Profile) -> Iterator[str]:
    """From which N the model costs more than each of the others, or they than it."""
    names = {contender.role: contender_name(contender) for contender in profile.contenders}
    fitted = {contender.role for contender in profile.contenders if contender.scaling.latency_fit is not None}
    patch = profile.model.patch
    for found in profile.crossovers:
        at = "at every size" if found.macs_at is None else f"from N = {tokens_and_side(found.macs_at, patch)}"
        text = f"{names[found.dearer]} costs more MACs than {names[found.cheaper]} {at}"
        if found.time_at is not None:
            interval = found.time_at.interval
            text += (
                f"; by the fits of latency it takes longer from N = {tokens_and_side(found.time_at.value, patch)}, 95 % "
                f"interval {tokens_and_side(interval.low, patch)} to {tokens_and_side(interval.high, patch)}"
            )
            text += ", beyond the measured sizes" if found.beyond else ""
        elif {found.dearer, found.cheaper} <= fitted:
            text += "; the fits of latency don't cross"
        yield f"{text}."


def _fit_sentences(fit: Fit, patch: int, profile: Profile) -> Iterator[str]:
    parts = [
        f"{name} = {seconds_per(estimate.value)} [{_interval(estimate.interval)}]"
        for name, estimate in (("a", fit.a), ("b", fit.b), ("c", fit.c))
    ]
    yield f"Latency ≈ a·N² + b·N + c seconds, all ≥ 0, with 95 % intervals: {', '.join(parts)}."
    if fit.quadratic_overtakes is not None:
        crossing, interval = fit.quadratic_overtakes.value, fit.quadratic_overtakes.interval
        yield (
            f"In measured time a·N² overtakes the rest at N = {tokens_and_side(crossing, patch)}, 95 % interval "
            f"{tokens_and_side(interval.low, patch)} to {tokens_and_side(interval.high, patch)}."
        )
    if fit.freedom == 0:
        yield (
            "Three sizes for three coefficients leave the fit no freedom: it is an interpolation, and nothing tests "
            f"the form.{_advice(profile)}"
        )
    else:
        yield f"{fit.freedom} sizes more than coefficients; largest residual {percent(fit.worst_residual)}."


def _advice(profile: Profile) -> str:
    if not profile.helpful_sizes:
        return ""
    return f" Sizes that would help: --res {','.join(map(str, profile.helpful_sizes))} as well."


def _interval(interval: Interval) -> str:
    return f"{seconds_per(interval.low)}, {seconds_per(interval.high)}"


def _slopes(slopes: tuple[Slope, ...]) -> str:
    def one(slope: Slope) -> str:
        text = f"{slope.value:.2f}"
        if slope.interval is not None:
            text += f" [{slope.interval.low:.2f}, {slope.interval.high:.2f}]"
        return f"{text} from N = {slope.from_tokens:,} to {slope.to_tokens:,}"

    return "; ".join(map(one, slopes))


def coverage_sentence(profile: Profile, *, names: bool) -> str:
    """Operators that no counter has a formula for; those that may hide matrix products are always named."""
    kinds: dict[str, set[str]] = {}
    for row in profile.model.rows:
        for entries in () if row.agreement is None else row.agreement.uncounted.values():
            for entry in entries:
                kinds.setdefault(entry.kind, set()).add(entry.operator.removeprefix("aten::"))
    unknown = kinds.pop("", set())
    number = sum(map(len, kinds.values()))
    known = "; ".join(f"{kind}: {', '.join(sorted(members))}" for kind, members in sorted(kinds.items()))
    text = f"Coverage: {number} operators without a formula hold no matrix products"
    if kinds:
        text += f" ({known})" if names else f" ({', '.join(sorted(kinds))})"
    if unknown:
        text += f"; {len(unknown)} of unknown kind may hold some: {', '.join(sorted(unknown))}"
    return text + "."


def scalar_sentence(profile: Profile) -> str:
    """Scalar operations at the largest size, named."""
    row = profile.model.rows[-1]
    named = ", ".join(f"{name} {significant(value / 1e9)}" for name, value in row.cost.scalar_ops.items())
    return f"Scalar operations at {row.resolution}, in units of 10⁹, counted apart from FLOPs: {named}."
