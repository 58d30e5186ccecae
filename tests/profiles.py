"""A finished profile with made-up measurements, the same every time, for tests of the reports."""

from dataclasses import replace
from functools import cache

from sola_profile.case import Settings, parse_resolutions
from sola_profile.growing import crossovers, scaling
from sola_profile.measure.kind_times import KindTimes
from sola_profile.measure.latency import Sample, WarmUp, summarize
from sola_profile.memory import PeakMemory
from sola_profile.result import OverBudget
from sola_profile.source import read_source
from sola_profile.sweep import Plan, Sweep

SPEED_FLOPS = 1.5e11
LONGEST_S = 5.0


def _measured(row):
    run_s = 2 * row.cost.macs / SPEED_FLOPS + 0.005
    if run_s > LONGEST_S:
        return replace(row, missing=OverBudget(run_s, 60.0))
    samples = [Sample(row.case, place // 2, run_s * (1 + 0.001 * (place * 7 % 11))) for place in range(20)]
    peak = row.predicted_memory
    return replace(
        row,
        latency=summarize(samples, WarmUp((run_s, run_s), settled=True)),
        measured_memory=PeakMemory(peak.parameter_bytes, peak.input_bytes, round(1.01 * peak.step_bytes)),
        kind_times=KindTimes(({kind: 1e-9 * macs + 1e-4 for kind, macs in row.cost.macs_by_kind.items()},)),
    )


@cache
def sample_profile(model="sola_t", sizes="64,128,512x256", *, measured=True, interrupted=False):
    """A profile as a sweep would give it."""
    plan = Plan(
        read_source(model), parse_resolutions(sizes), Settings(), None, f"sola-profile --model {model} --res {sizes}"
    )
    sweep = Sweep(plan)
    list(sweep.run())
    found = replace(sweep.profile(), started="2026-01-01T00:00:00+00:00", interrupted=interrupted)
    if not measured:
        return found
    contenders = []
    for contender in found.contenders:
        rows = tuple(map(_measured, contender.rows))
        growing = scaling(contender.scaling.complexity, rows, contender.patch, 32)
        contenders.append(replace(contender, rows=rows, scaling=growing))
    return replace(found, contenders=tuple(contenders), budget_s=60.0, crossovers=tuple(crossovers(contenders)))
