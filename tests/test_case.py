"""What is run: image sizes, settings, token counts, and the sentences for what can't be read."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sola_profile.case import MAX_SIDE, Case, Resolution, Settings, parse_resolutions, read_spec
from sola_profile.source import read_source

SIDES = st.integers(1, MAX_SIDE)


@given(SIDES, SIDES)
def test_every_resolution_reads_back_from_its_own_text(height, width):
    size = Resolution(height, width)
    assert Resolution.parse(str(size)) == size


def test_sizes_come_once_and_from_few_pixels_to_many():
    assert [str(size) for size in parse_resolutions("1024, 224,512x2048,224")] == ["224", "512x2048", "1024"]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("abc", "expected pixels such as 224 or 512x2048, got 'abc'"),
        ("512*2048", "did you mean '512x2048'?"),
        ("512X2048", "did you mean '512x2048'?"),
        ("224px", "did you mean '224'?"),
        ("-224", "did you mean '224'?"),
        ("0", "a side has 1 to 65,536 pixels, got 0"),
        ("224x0", "got 0"),
        ("70000", "got 70,000"),
        ("224,,512", "an empty size"),
        ("", "an empty size"),
    ],
)
def test_a_wrong_size_names_the_nearest_right_spelling(text, hint):
    with pytest.raises(ValueError, match=re.escape(hint)):
        parse_resolutions(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch: expected at least 1"),
        ({"threads": 0}, "threads: expected at least 1"),
        ({"threads": 100_000}, "threads: expected at most 4096, got 100000"),
        ({"dtype": "float31"}, "did you mean 'float32'?"),
        ({"mode": "training"}, "did you mean 'train'?"),
    ],
)
def test_settings_refuse_what_they_do_not_know(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Settings(**changes)


def test_tokens_are_counted_after_padding():
    source = read_source("sola_t")

    def case_of(resolution):
        return Case(source, resolution, Settings(), source.default_input)

    assert case_of(Resolution(224, 224)).tokens == (3136, 784, 196, 49)
    assert not case_of(Resolution(512, 2048)).padded
    odd = case_of(Resolution(100, 333))
    assert odd.padded
    # 25 × 84 patches, then every side halved rounding up
    assert odd.tokens == (25 * 84, 13 * 42, 7 * 21, 4 * 11)


def test_another_pattern_shows_in_the_name():
    spec = read_spec("sola_t", "L*2|L*2|S*6|LS")
    assert spec.pattern == "LL|LL|SSSSSS|LS"
    assert spec.name == "sola_t[LL|LL|SSSSSS|LS]"
    assert read_spec("sola_t", "L*2|L*2|(LLS)*2|LS") is read_spec("sola_t")
    for same in (read_spec("sola_t[all S]"), read_spec("sola_t", "all S")):
        assert same.name == "sola_t[SS|SS|SSSSSS|SS]"
        assert same.pattern == "SS|SS|SSSSSS|SS"


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'sola_t'"):
        read_spec("sola-t")
