"""The one place where numbers turn into text."""

from __future__ import annotations

import signal
from fractions import Fraction
from math import floor, isinf, log10

from sola_profile.cost.expression import Expression, monomial
from sola_profile.measure.latency import Doubt, Latency
from sola_profile.measure.statistics import Interval
from sola_profile.result import Killed, LeftOut, Missing, NotReached, OutOfMemory, OverBudget, ran_out_of_memory

_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def significant(value: float, digits: int = 3) -> str:
    """Rounded to significant digits, without an exponent: 0.0123, 12.3, 1,230."""
    if value == 0:
        return "0"
    if isinf(value):
        return "∞"
    place = floor(log10(abs(value)))
    rounded = round(value, digits - 1 - place)
    # rounding may carry into the next place
    place = floor(log10(abs(rounded)))
    return f"{rounded:,.{max(0, digits - 1 - place)}f}"


def scaled(value: float, unit: str = "", digits: int = 3) -> str:
    """With a decimal prefix: ``1.88 G``, ``6.48 M``."""
    for factor, prefix in _SCALES:
        if abs(value) >= factor * (1 - 0.5 * 10**-digits):
            return f"{significant(value / factor, digits)} {prefix}{unit}"
    return f"{significant(value, digits)} {unit}".rstrip()


def whole(value: int) -> str:
    """Thousands separated: 1,880,059,712."""
    return f"{value:,}"


def exact(value: Fraction) -> str:
    """A whole number, or a fraction in lowest terms: ``201/64``."""
    return whole(value.numerator) if value.denominator == 1 else f"{whole(value.numerator)}/{value.denominator}"


def polynomial_text(expression: Expression) -> str:
    """``12,864·N² + 589,568·N + 288,000``."""
    parts = []
    for powers, coefficient in expression.terms.items():
        name = monomial(expression.letters, powers)
        sign = "−" if coefficient < 0 else "+"
        number = exact(abs(coefficient))
        parts.append(f"{sign} {number}" if name == "1" else f"{sign} {number}·{name}")
    joined = " ".join(parts) or "0"
    return joined.removeprefix("+ ")


def mebibytes(size_bytes: int) -> str:
    """``17.2 MiB``."""
    return f"{significant(size_bytes / 2**20)} MiB"


def duration(seconds: float) -> str:
    """``20.3 ms``, ``1.25 s``, ``3 min``."""
    if seconds >= 120:
        return f"{significant(seconds / 60, 2)} min"
    # 999.5 ms and more would round to 1,000 ms
    if seconds >= 0.9995:
        return f"{significant(seconds)} s"
    if seconds >= 1e-3:
        return f"{significant(seconds * 1e3)} ms"
    return f"{significant(seconds * 1e6)} µs"


def duration_interval(interval: Interval) -> str:
    """``19.8 – 21.0 ms``, the unit once."""
    low, high = duration(interval.low), duration(interval.high)
    number, unit = low.rsplit(" ", 1)
    return f"{number} – {high}" if high.endswith(f" {unit}") else f"{low} – {high}"


def percent(share: float, digits: int = 1) -> str:
    """``12.3 %``."""
    return f"{100 * share:.{digits}f} %"


def signed_percent(share: float) -> str:
    """``+1.2 %``; exactly zero reads ``0 %``."""
    return "0 %" if share == 0 else f"{100 * share:+.1f} %"


def residual(predicted: float, measured: float) -> str:
    """How far a prediction is off; nothing where nothing was measured to be off from."""
    return signed_percent(predicted / measured - 1) if measured else "–"


def times(ratio: float) -> str:
    """``3.20 ×``."""
    return f"{significant(ratio)} ×"


def tokens_and_side(tokens: float, patch_size: int) -> str:
    """A number of stage-1 tokens with the square image that has it: ``172,685 tokens (1,662² px)``."""
    if isinf(tokens):
        return "∞"
    return f"{round(tokens):,} tokens ({round(patch_size * tokens**0.5):,}² px)"


def seconds_per(value: float) -> str:
    """A fit coefficient in scientific notation: ``4.10e-07``."""
    return "0" if value == 0 else f"{value:.2e}"


def missing_text(missing: Missing) -> str:
    """Why there is no measurement."""
    if isinstance(missing, OverBudget):
        return f"not measured (≈ {duration(missing.estimated_s)} a run, budget {missing.budget_s:g} s)"
    if isinstance(missing, OutOfMemory):
        if missing.free_bytes is None:
            return "out of memory"
        return f"out of memory (needs {mebibytes(missing.needed_bytes)}, {mebibytes(missing.free_bytes)} free)"
    if isinstance(missing, LeftOut):
        return missing.reason
    if isinstance(missing, Killed):
        return _killed_text(missing)
    assert isinstance(missing, NotReached)
    return "not reached"


def _killed_text(missing: Killed) -> str:
    if missing.exit_code >= 0:
        return f"its process ended with code {missing.exit_code}"
    try:
        name = signal.Signals(-missing.exit_code).name
    except ValueError:
        name = f"signal {-missing.exit_code}"
    cause = ", as Linux does when memory runs out" if ran_out_of_memory(missing) else ""
    return f"its process was killed ({name}{cause})"


def doubt_text(doubt: Doubt) -> str:
    """What speaks against a result."""
    if doubt.reason == "few samples":
        return f"{doubt.value:.0f} samples"
    if doubt.reason == "wide interval":
        return f"± {percent(doubt.value, 0)}"
    return f"drift {100 * doubt.value:+.0f} %"


def doubts_text(latency: Latency) -> str:
    """``unstable: ± 8 %, drift +6 %``, or nothing."""
    return "unstable: " + ", ".join(map(doubt_text, latency.doubts)) if latency.unstable else ""
