"""Everything that can be known of a case without running it, as one row: cost, witnesses, peak memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from sola_profile.case import Case, Resolution
from sola_profile.compare.witnesses import Agreement, agreement, family_agreement
from sola_profile.cost.breakdown import FORMULAS, Breakdown
from sola_profile.cost.closed_form import closed_form
from sola_profile.cost.formula_cost import formula_breakdown
from sola_profile.cost.liveness import follow_step
from sola_profile.cost.recording import Call, Recording, record_at
from sola_profile.cost.roofline import ModelTime, predict_times
from sola_profile.cost.symbolic import ModelFormula, grouped, total
from sola_profile.errors import first_line
from sola_profile.hardware import Machine
from sola_profile.measure import flop_counter, fvcore_counter
from sola_profile.measure.counts import Count
from sola_profile.pieces import piece_modules
from sola_profile.result import LayerTime, Row
from sola_profile.workload import Workload
from sola_vision.spec import BackboneSpec

COUNTERS: dict[str, Callable[[Workload, Resolution], Count]] = {
    flop_counter.NAME: flop_counter.count_forward,
    fvcore_counter.NAME: fvcore_counter.count_forward,
}


def analyse(case: Case, workload: Workload, formula: ModelFormula | None = None) -> Row:
    """A backbone: its closed form; ``formula`` asks for the witnesses too, its own and the counters."""
    assert case.spec is not None
    closed = closed_form(case.spec, case.resolution, case.settings.batch)
    if formula is None:
        return _row(case, workload, closed, case.tokens)
    recording = formula.at(case.resolution)
    counts = [formula_count(recording, case.spec), *(count(workload, case.resolution) for count in COUNTERS.values())]
    return replace(_row(case, workload, closed, case.tokens, agreement(closed, counts)), moved_bytes=_moved(recording))


def analyse_model(case: Case, workload: Workload, formula: ModelFormula) -> Row:
    """A model without a spec: the formulas of its operators, beside the counters."""
    recording = formula.at(case.resolution)
    cost = formula_breakdown(recording, workload.model)
    counts, absent = count_all(workload, case.resolution)
    assert recording.grid is not None
    agreed = family_agreement(cost, recording, counts, absent)
    return replace(
        _row(case, workload, cost, (recording.grid[0] * recording.grid[1],), agreed), moved_bytes=_moved(recording)
    )


def _moved(recording: Recording) -> int:
    sums = total(recording.calls)
    return int(sums.read_bytes + sums.written_bytes)


def _row(
    case: Case, workload: Workload, cost: Breakdown, tokens: tuple[int, ...], agreed: Agreement | None = None
) -> Row:
    peak, moments = follow_step(workload, case.resolution)
    trains = case.settings.mode == "train" and agreed is not None
    return Row(
        case=case,
        cost=cost,
        tokens_per_stage=tokens,
        counted_parameters=sum(parameter.numel() for parameter in workload.model.parameters()),
        predicted_memory=peak,
        agreement=agreed,
        step_macs=flop_counter.count_step(workload.step(workload.image(case.resolution))).macs if trains else None,
        memory_timeline=moments,
    )


def with_time(row: Row, machine: Machine) -> Row:
    """The same with the time that a machine's ceilings predict for the forward pass."""
    case = row.case
    dtype, device_type = case.settings.dtype, machine.device_type
    recording = record_at(case.source, case.shape, dtype, case.resolution, sized=case.sized, device_type=device_type)
    times = predict_times(recording, machine)
    return replace(row, predicted_time=times.total, layers=tuple(_layers(case, times)))


def _layers(case: Case, times: ModelTime) -> Iterator[LayerTime]:
    """Pieces of a backbone, or modules two steps down of another model, as far as they have matrix products."""
    pieces = {piece.path: piece for piece in piece_modules(case.spec)}

    def layer_of(call: Call) -> str:
        if not pieces:
            return ".".join(call.module.split(".")[:2])
        return next((path for path in pieces if _inside(call.module, path)), "")

    for path, calls in times.grouped(layer_of).items():
        products = [time for time in calls if time.call.work.macs]
        if not products or not path:
            continue
        time_s = sum(time.time.middle for time in calls)
        kinds = Counter[str]()
        bounds = Counter[str]()
        for time in calls:
            kinds[time.call.kind] += time.call.work.macs
            bounds[time.bound] += round(1e9 * time.time.middle)
        piece = pieces.get(path)
        yield LayerTime(
            piece.name if piece else path,
            piece.kind if piece else kinds.most_common(1)[0][0],
            2 * sum(time.call.work.macs for time in products),
            sum(time.call.read_bytes + time.call.written_bytes for time in calls),
            time_s,
            bounds.most_common(1)[0][0],
        )


def count_all(workload: Workload, resolution: Resolution) -> tuple[list[Count], dict[str, str]]:
    """What the counters find on the meta device, and why one found nothing."""
    counts: list[Count] = []
    absent: dict[str, str] = {}
    for name, count in COUNTERS.items():
        try:
            counts.append(count(workload, resolution))
        except Exception as error:
            absent[name] = first_line(error)
    return counts, absent


def formula_count(recording: Recording, spec: BackboneSpec) -> Count:
    """A recording of a backbone as one more witness, by operator and by piece."""
    by_operator = {name: part.macs for name, part in grouped(recording.calls, lambda call: call.operator).items()}
    by_piece = {
        piece.name: total(call for call in recording.calls if _inside(call.module, piece.path)).macs
        for piece in piece_modules(spec)
    }
    return Count(FORMULAS, {name: macs for name, macs in by_operator.items() if macs}, by_piece)


def _inside(module: str, path: str) -> bool:
    return module == path or module.startswith(f"{path}.")
