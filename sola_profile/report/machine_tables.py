"""A machine's ceilings as tables of text."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from sola_profile.hardware import CALL, SECONDS, TRAFFIC, Machine, Surface
from sola_profile.report.numbers import duration, mebibytes, percent, scaled, significant
from sola_profile.report.sentences import QUIET
from sola_profile.report.tables import Table


def machine_headline(machine: Machine) -> str:
    """What was measured, when and how long it took."""
    if not machine.measured:
        return f"{machine.name}, {machine.dtype}: not measured, from data sheets"
    threads = f"{machine.threads} thread{'s' if machine.threads > 1 else ''}"
    took = f"in {significant(machine.took_s, 2)} s"
    headline = f"{machine.name}: {machine.device}, {machine.dtype}, {threads}, measured {machine.measured_at} {took}"
    return headline + (f"; {busy}" if (busy := busy_text(machine)) else "")


def busy_text(machine: Machine) -> str:
    """That other programs ran before the ceilings were measured, or nothing."""
    if machine.load_1min <= QUIET:
        return ""
    return f"the load was {machine.load_1min:.1f} before, so rates may be too low: sola-profile machine --fresh measures anew"


def machine_tables(machine: Machine) -> Iterator[Table]:
    """Rates by family, memory by working set, costs of calls."""
    families = {
        name: surface
        for name, surface in machine.surfaces.items()
        if surface.unit != SECONDS and not (name == TRAFFIC and surface.axes)
    }
    rows = tuple(_family_cells(name, surface) for name, surface in families.items())
    columns = ("Family", "Lowest", "Highest", "Unit", "Shapes", "Scatter", "by")
    yield Table("Rates", columns, rows, frozenset({"Family", "Unit", "by"}))
    traffic = machine.surfaces.get(TRAFFIC)
    if traffic is not None and traffic.axes:
        yield _traffic_table(traffic)
    costs = [(name, surface) for name, surface in machine.surfaces.items() if surface.unit == SECONDS]
    rows = tuple((name.removeprefix(f"{CALL}: "), duration(surface.rates[0][1])) for name, surface in costs)
    yield Table("A call with nothing to do", ("Of", "Takes"), rows, frozenset({"Of"}))


def _family_cells(name: str, surface: Surface) -> tuple[str, ...]:
    middles = [middle for _, middle, _ in surface.rates]
    scatter = median((high - low) / middle for low, middle, high in surface.rates)
    return (
        name,
        scaled(min(middles)),
        scaled(max(middles)),
        surface.unit,
        str(len(middles)),
        percent(scatter),
        ", ".join(surface.axes),
    )


def _traffic_table(traffic: Surface) -> Table:
    (sizes,) = traffic.axes.values()
    rows = tuple(
        (mebibytes(int(size)), scaled(middle, "B/s")) for size, (_, middle, _) in zip(sizes, traffic.rates, strict=True)
    )
    return Table("Copy, read and written", ("Bytes touched", "Rate"), rows)
