"""Predicted times: known answers on machines made up for the purpose, and what is measured to make real ones."""

import math
from dataclasses import replace

import altair
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sola_profile
from sola_profile import families as names
from sola_profile.case import Resolution, Settings, parse_resolutions
from sola_profile.compare.bounds import turns
from sola_profile.cost.recording import record_at
from sola_profile.cost.reuse import Death, Touch, accesses
from sola_profile.cost.roofline import predict_times
from sola_profile.hardware import (
    BYTES,
    CALL,
    ELEMENTS,
    FIRST_TOUCH,
    FLOPS,
    MMAP_THRESHOLD,
    SECONDS,
    TRAFFIC,
    Machine,
    Span,
    Surface,
    constant,
)
from sola_profile.machine_store import (
    datasheets,
    find_machine,
    fingerprint,
    machine_name,
    read_machine,
    save,
    stored,
)
from sola_profile.measure import probes, surfaces
from sola_profile.measure.probes import FAMILIES
from sola_profile.report.charts import specs
from sola_profile.report.json_file import json_text
from sola_profile.report.read_json import read_profile
from sola_profile.source import FACTORY, InputShape, ModelSource, read_source
from sola_profile.sweep import Plan, Sweep
from sola_profile.time_result import kind_of
from sola_profile.time_sweep import TimePlan, TimeSweep

CPU = surfaces.Place(torch.device("cpu"), torch.float32)
WANTED = (names.LINEAR, names.CONVOLUTION, f"{names.ELEMENTWISE}exp", f"{names.ELEMENTWISE}add")


def machine(**changed):
    """1 GFLOP/s and 1 GB/s for everything, and 1 µs a call."""
    rates = {
        **{name: constant(FLOPS, 1e9) for name in (names.LINEAR, names.POINTWISE, names.CONVOLUTION)},
        f"{names.ELEMENTWISE}add": constant(ELEMENTS, 1e9),
        TRAFFIC: constant(BYTES, 1e9),
        CALL: constant(SECONDS, 1e-6),
        **changed,
    }
    return Machine("made up", True, "cpu", "float32", 1, rates)


def record(model, size=64, shape="1x3xHxW"):
    source = ModelSource("model", FACTORY, made=model)
    return record_at(source, InputShape.parse(shape), "float32", Resolution(size, size))


@given(st.lists(st.floats(1, 1e12), min_size=6, max_size=6), st.floats(0.1, 1e5), st.floats(0.1, 1e5))
def test_a_surface_goes_through_its_points_and_never_beyond_them(rates, rows, columns):
    axes = {"rows": (2, 50), "columns": (3, 70, 900)}
    surface = Surface(FLOPS, axes, [(rate, rate, rate) for rate in rates])
    points = [(r, c) for r in axes["rows"] for c in axes["columns"]]
    for (r, c), rate in zip(points, rates, strict=True):
        assert surface.at({"rows": r, "columns": c}).middle == pytest.approx(rate)
    assert min(rates) * (1 - 1e-9) <= surface.at({"rows": rows, "columns": columns}).middle <= max(rates) * (1 + 1e-9)


def test_between_two_points_a_surface_is_a_power_law():
    surface = Surface(FLOPS, {"rows": (1, 100)}, [(1, 1, 1), (1e4, 1e4, 1e4)])
    assert surface.at({"rows": 10}).middle == pytest.approx(100)
    assert surface.at({"rows": 1e9}).middle == pytest.approx(1e4)


def test_a_linear_map_takes_the_longer_of_its_work_and_its_bytes():
    model = nn.Sequential(nn.Flatten(2), nn.Linear(64 * 64, 8, bias=False))
    flops, moved = 2 * 3 * 4096 * 8, 4 * (3 * 4096 + 8 * 4096 + 3 * 8)
    slow = predict_times(record(model), machine())
    (call,) = slow.calls
    assert call.bound == "compute"
    assert call.time.middle == pytest.approx(flops / 1e9 + 1e-6)
    assert slow.total.middle == pytest.approx(call.time.middle)
    fast = predict_times(record(model), machine(**{names.LINEAR: constant(FLOPS, 1e12)}))
    assert fast.calls[0].bound == "memory"
    assert fast.total.middle == pytest.approx(moved / 1e9 + 1e-6)
    costly = predict_times(record(model), machine(**{CALL: constant(SECONDS, 1.0)}))
    assert costly.shares == {"compute": 0.0, "memory": 0.0, "overhead": 1.0}


def test_the_interval_comes_from_the_scatter_of_the_rates():
    wide = Surface(FLOPS, {}, [(0.5e9, 1e9, 2e9)])
    model = nn.Sequential(nn.Flatten(2), nn.Linear(64 * 64, 8, bias=False))
    times = predict_times(record(model), machine(**{names.LINEAR: wide, TRAFFIC: constant(BYTES, 1e15)}))
    flops_s = 2 * 3 * 4096 * 8 / 1e9
    assert times.total.low == pytest.approx(flops_s / 2 + 1e-6)
    assert times.total.high == pytest.approx(flops_s * 2 + 1e-6)


@pytest.mark.parametrize(
    ("module", "family"),
    [
        (nn.Conv2d(8, 4, 1), names.POINTWISE),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), names.DEPTHWISE),
        (nn.Conv2d(8, 4, 4, stride=4), names.PATCHES),
        (nn.Conv2d(8, 4, 3, stride=2, padding=1), names.CONVOLUTION),
        (nn.Conv2d(8, 8, 1).to(memory_format=torch.channels_last), names.POINTWISE),
        (nn.ReLU(), f"{names.ELEMENTWISE}relu"),
        (nn.BatchNorm2d(8), names.BATCH_NORM),
        (nn.MaxPool2d(2), names.POOL),
    ],
)
def test_a_call_finds_its_family(module, family):
    (call,) = record(module, 32, "1x8xHxW").calls
    assert call.place.family == family
    assert call.place.before is None


def test_a_channel_mix_finds_its_family_where_it_has_kernels():
    """On the CPU one call of one family; elsewhere the operators of PyTorch that run there."""
    source, size = read_source("sola_t"), Resolution(64, 64)
    at, elsewhere = (
        record_at(source, InputShape.parse("2x3xHxW"), "float32", size, device_type=device) for device in ("cpu", "mps")
    )
    mixes = [call for call in at.calls if call.operator == "sola::channel_mix"]
    assert len(mixes) == 12
    first = mixes[0].place
    assert (first.family, first.shape) == (names.CHANNEL_MIX, {"tokens": 2 * 256, "channels": 96, "hidden": 384})
    assert first.amount == 2 * 512 * 9 * 96**2
    assert not any(call.operator == "sola::channel_mix" for call in elsewhere.calls)
    assert sum(call.work.macs for call in elsewhere.calls) == sum(call.work.macs for call in at.calls)
    # hidden units that have to be kept
    assert max(size for _, size in elsewhere.moments) > max(size for _, size in at.moments)


class Tokens(nn.Module):
    """Tokens as an image without a copy, for a convolution that copies them first."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2) + 1.0
        return self.conv(tokens.contiguous().transpose(1, 2).view(x.shape))


def test_a_view_of_tokens_is_copied_before_a_convolution():
    """Its layout is that of channels last, but for the step of the batch, and torch asks for both."""
    convolution = record(Tokens(), 32, "1x8xHxW").calls[-1]
    assert convolution.place.family == names.DEPTHWISE
    assert convolution.place.before.family == names.TRANSPOSE
    assert convolution.place.before.amount == 8 * 32 * 32


@pytest.mark.parametrize("model", ["sola_t", "timm:pvt_v2_b0", "timm:convnext_atto", "timm:mobilenetv3_small_100"])
def test_every_product_of_a_model_has_a_probe_on_its_axes(model):
    """A family without probes would be missing from every time; a missing axis would end the prediction."""
    axes = {family.name: set(family.axes) for family in FAMILIES}
    for call in record_at(read_source(model), InputShape(), "float32", Resolution(64, 64)).calls:
        if call.work.macs or call.place.family in axes:
            assert axes[call.place.family] <= set(call.place.shape), call.operator


@pytest.mark.parametrize(
    ("options", "family"),
    [
        ({"mode": "nearest"}, "resize, nearest"),
        ({"mode": "nearest-exact"}, "resize, nearest"),
        ({"mode": "bilinear"}, "resize, bilinear"),
        ({"mode": "bilinear", "align_corners": True}, "resize, bilinear"),
        ({"mode": "bicubic"}, "resize, bicubic"),
        ({"mode": "bicubic", "antialias": True}, "resize, bicubic, antialiased"),
    ],
    ids=str,
)
def test_every_kind_of_resizing_has_a_rate_of_its_own(options, family):
    class Resize(nn.Module):
        def forward(self, x):
            return nn.functional.interpolate(x, scale_factor=2.0, **options)

    class Pixels(Resize):
        def forward(self, x):
            return super().forward(x.contiguous(memory_format=torch.channels_last))

    probed = {probe.name for probe in FAMILIES}
    for module, suffix in ((Resize(), ""), (Pixels(), names.CHANNELS_LAST)):
        place = record(module, 16).calls[-1].place
        assert (place.family, place.amount) == (family + suffix, 3 * 32 * 32)
        assert place.family in probed


def test_memory_that_is_new_and_memory_that_is_near():
    small, large = 1000, MMAP_THRESHOLD
    events = [
        Touch(0, 1, 500, 500, lasting=True),
        Touch(0, 2, small, small),
        Touch(1, 2, small, small),
        Touch(1, 3, large, large),
        Death(2),
        Touch(2, 4, small, small),
        Touch(2, 3, large, large),
        Death(3),
        Death(4),
    ]
    first, second, third = accesses(events, 3)
    # the heap keeps a small block, and a large one is new in every pass
    assert (first.new_bytes, second.new_bytes, third.new_bytes) == (0, large, 0)
    # the weight was last touched before everything else of the pass, which is the small block by now
    assert first.touched[0] == (500, small)
    assert second.touched[0] == (small, 0)
    assert second.touched[1] == (large, math.inf)
    # the block in the place of one that has died, behind the large one
    assert third.touched[0] == (small, large)


def test_blocks_inside_a_convolution_are_new_memory_too():
    """Copies of image and output in blocks of channels, each beyond what the heap keeps, beside the output itself."""
    recording = record(nn.Conv2d(64, 64, 3, padding=1), 512, "1x64xHxW")
    (access,) = accesses(recording.events, len(recording.calls))
    assert access.new_bytes == 3 * 4 * 64 * 512 * 512
    # of what is touched they are no part
    assert sum(touched for touched, _ in access.touched) == 2 * 4 * 64 * 512 * 512 + 4 * 64 * (64 * 9 + 1)


def test_first_touch_adds_to_the_time():
    model = nn.Upsample(scale_factor=64)
    plain = predict_times(record(model), machine())
    slow = predict_times(record(model), machine(**{FIRST_TOUCH: constant(BYTES, 1e6)}))
    new_bytes = 4 * 3 * 4096 * 4096
    assert slow.total.middle - plain.total.middle == pytest.approx(new_bytes / 1e6)


def test_what_can_not_be_predicted_is_named():
    bare = machine()
    times = predict_times(record(nn.Conv2d(3, 8, 3)), replace(bare, surfaces={CALL: bare.surfaces[CALL]}))
    assert times.uncounted == ("aten::convolution",)


def test_where_a_kind_turns_compute_bound():
    model = nn.Conv2d(3, 64, 3, padding=1)
    fast = machine(**{names.STEM: constant(FLOPS, 1e9), CALL: constant(SECONDS, 0.1), TRAFFIC: constant(BYTES, 1e12)})
    sizes = [Resolution(side, side) for side in (32, 64, 128, 256, 512)]
    (turn,) = turns({size: predict_times(record(model, size.height), fast) for size in sizes}, kind_of)
    assert turn.kind == "convolution"
    assert turn.bounds[Resolution(128, 128)] == "overhead"
    # 2 · 27 · 64 · side² / 1e9 passes 0.1 s at a side of 170
    assert turn.compute_from == Resolution(256, 256)


@pytest.fixture(scope="module")
def small_machine():
    """Ceilings of a few families on coarse grids."""
    few = [
        replace(family, axes={axis: (values[0], values[-1]) for axis, values in family.axes.items()})
        for family in FAMILIES
        if family.name in WANTED
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surfaces, "FAMILIES", few)
        patch.setattr(surfaces, "TOUCHED", (2**15, 2**19))
        found = {name: surface for name, surface in surfaces.measure_surfaces(CPU) if surface is not None}
    return Machine("small", True, "cpu", "float32", torch.get_num_threads(), found)


def test_measured_rates_are_rates(small_machine):
    assert {*WANTED, TRAFFIC, FIRST_TOUCH, CALL} <= set(small_machine.surfaces)
    for surface in small_machine.surfaces.values():
        assert len(surface.rates) == math.prod(len(values) for values in surface.axes.values())
        assert all(0 < low <= middle <= high < 1e16 for low, middle, high in surface.rates)


def test_ceilings_that_no_longer_hold_are_noticed(small_machine, monkeypatch):
    exp = f"{names.ELEMENTWISE}exp"
    now = Span(*surfaces._rate_now(CPU, exp, small_machine))
    # measured once: a busy machine has another rate the next time
    monkeypatch.setattr(surfaces, "_rate_now", lambda *_: (now.low, now.middle, now.high))

    def drifts(kept):
        return surfaces.spot_check(CPU, replace(small_machine, surfaces={exp: constant(ELEMENTS, kept)}))

    (drift,) = drifts(10 * now.high)
    assert (drift.name, drift.ratio) == (exp, pytest.approx(0.1))
    assert drifts(now.middle) == []


def test_a_model_is_measured_beside_its_prediction(small_machine):
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.ReLU()), nn.Conv2d(48, 48, 3, padding=1))
    source = ModelSource("small", FACTORY, made=model)
    sizes = [Resolution(64, 64), Resolution(96, 96)]
    sweep = TimeSweep(TimePlan([source], sizes, small_machine, budget_s=1000, depth=1, bounds=False))
    list(sweep.run())
    (found,) = sweep.result().models
    for row in found.rows:
        assert row.latency is not None
        assert row.error == row.predicted.total.middle / row.latency.median_s - 1
        assert set(row.module_times) == {"(itself)", "0", "1"}
    assert sweep.result().median_absolute_error == pytest.approx(sum(abs(row.error) for row in found.rows) / 2)


def test_a_size_without_time_for_it_says_so(small_machine):
    source = ModelSource("small", FACTORY, made=nn.Conv2d(3, 48, 3))
    sweep = TimeSweep(TimePlan([source], [Resolution(512, 512)], small_machine, budget_s=1e-6, bounds=False))
    list(sweep.run())
    (row,) = sweep.result().models[0].rows
    assert row.latency is None
    assert "a run" in row.missing


def test_ceilings_of_other_probes_are_not_taken(small_machine, monkeypatch, tmp_path):
    monkeypatch.setenv("SOLA_MACHINES", str(tmp_path))
    threads = torch.get_num_threads()
    name = machine_name(fingerprint("cpu"), "cpu", "float32", threads)
    save(replace(small_machine, name=name))
    assert stored("cpu", "float32", threads).name == name
    monkeypatch.setattr(probes, "FAMILIES", FAMILIES[:-1])
    assert stored("cpu", "float32", threads) is None


def test_a_machine_is_kept_whole(small_machine, monkeypatch, tmp_path):
    monkeypatch.setenv("SOLA_MACHINES", str(tmp_path))
    back = read_machine(save(small_machine))
    place = {"rows": 77, "inner": 99, "columns": 300}
    assert back.rate(names.LINEAR, place) == small_machine.rate(names.LINEAR, place)
    assert find_machine("small", "float32").threads == small_machine.threads
    with pytest.raises(ValueError, match="was measured in float32, not in bfloat16"):
        find_machine("small", "bfloat16")
    (tmp_path / "small.json").write_text('{"schema_version": 99}')
    with pytest.raises(ValueError, match="expected schema_version 1, got 99"):
        find_machine("small", "float32")


def test_a_machine_predicts_in_its_own_dtype():
    machine = find_machine("h100", "bfloat16")
    own, named = (sola_profile.predict("sola_t", "64", machine=which, dtype="bfloat16") for which in (machine, "h100"))
    assert own.models[0].rows[0].predicted.total == named.models[0].rows[0].predicted.total
    assert sola_profile.predict("sola_t", "64", machine=machine).machine.dtype == "bfloat16"
    with pytest.raises(ValueError, match=r"dtype: .* has figures for bfloat16, got 'float32'"):
        sola_profile.predict("sola_t", "64", machine=machine, dtype="float32")


def test_data_sheets_have_sources_and_known_dtypes():
    for name, sheet in datasheets().items():
        assert sheet["sources"], name
        assert sheet["assumptions"], name
        for dtype in sheet["peak_flops"]:
            assert not find_machine(name, dtype).measured
    with pytest.raises(ValueError, match="did you mean 'h200'"):
        find_machine("H20O", "float32")


def test_layers_of_a_profile_stand_under_the_roof():
    """Work, bytes and time of a backbone's pieces; FLOP/s never above what the machine has."""
    plan = Plan(
        read_source("sola_t"), parse_resolutions("64,128"), Settings(), None, machine=find_machine("a100", "float32")
    )
    sweep = Sweep(plan)
    list(sweep.run())
    found = sweep.profile()
    for row in found.model.rows:
        assert sum(layer.flops for layer in row.layers) == 2 * row.cost.macs
        assert {layer.kind for layer in row.layers} == {piece.kind for piece in row.cost.pieces if piece.macs}
        # norms, residual sums and views belong to no piece
        assert sum(layer.time_s for layer in row.layers) < row.predicted_time.middle
        assert all(layer.flops / layer.time_s <= found.roofs.flops_per_s for layer in row.layers)
    chart = specs(found)["roofline.svg"]
    altair.LayerChart.from_dict(chart, validate=True)
    paths = chart["layer"][-2]["data"]["values"]
    assert len(paths) == sum(len(row.layers) for row in found.model.rows)
    assert read_profile(json_text(found), "memory") == found
