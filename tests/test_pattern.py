"""The pattern grammar: what it accepts, and where it points when it doesn't."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sola_vision import PatternError, parse_pattern
from sola_vision.pattern import MAX_LAYERS, MAX_NESTING, format_pattern


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("L", ("L",)),
        ("LL|LL|LLSLLS|LS", ("LL", "LL", "LLSLLS", "LS")),
        ("L*2|L*2|(LLS)*2|LS", ("LL", "LL", "LLSLLS", "LS")),
        (" L * 2 |\t( L L S ) * 2\n", ("LL", "LLSLLS")),
        ("((L*2)S)*2L", ("LLSLLSL",)),
        ("(L)*1", ("L",)),
        ("L*007", ("L" * 7,)),
        ("(AB)*2C|Z", ("ABABC", "Z")),
    ],
)
def test_accepts(text, stages):
    assert parse_pattern(text) == stages


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("", 0, "the pattern ends where a layer letter or '(' was expected"),
        ("   ", 3, "the pattern ends"),
        ("LL|", 3, "the pattern ends"),
        ("|LL", 0, "found '|'"),
        ("LL||LS", 3, "found '|'"),
        ("LLx", 2, "found 'x'"),
        ("LÉ", 1, "found 'É'"),
        ("L*", 2, "'*' needs a whole number"),
        ("L*-1", 2, "'*' needs a whole number"),
        ("L*٣", 2, "'*' needs a whole number"),
        ("L*0", 2, "a repeat of 0"),
        ("L*2*2", 3, "found '*'"),
        ("*2L", 0, "found '*'"),
        ("LL|(LS", 3, "this '(' is never closed"),
        ("L(S|L)", 1, "this '(' is never closed"),
        ("L()S", 1, "empty parentheses"),
        ("LS)L", 2, "found ')'"),
        (f"L*{MAX_LAYERS + 1}", 2, f"more than {MAX_LAYERS} layers"),
        ("(LL)*4000", 5, f"more than {MAX_LAYERS} layers"),
        ("L*" + "9" * 5000, 2, f"more than {MAX_LAYERS} layers"),
        ("((L*4000)*2)*4000", 10, f"more than {MAX_LAYERS} layers"),
        ("(" * 5000, MAX_NESTING, f"more than {MAX_NESTING} parentheses"),
    ],
)
def test_points_at_the_mistake(text, position, reason):
    with pytest.raises(PatternError) as caught:
        parse_pattern(text)
    assert caught.value.position == position
    assert reason in caught.value.reason
    shown, caret = str(caught.value).splitlines()[-2:]
    assert len(shown) == len(text) + 2
    assert caret == " " * (position + 2) + "^"


def test_a_stage_that_grows_too_long_item_by_item():
    with pytest.raises(PatternError, match=f"more than {MAX_LAYERS} layers in a stage"):
        parse_pattern("(L*4000)(S*4000)")


@pytest.mark.parametrize(
    ("text", "depths", "position", "reason"),
    [
        ("LL|LL|LLS|LS", (2, 2, 6, 2), 8, "stage 3 has 3 layers where the backbone has 6"),
        ("LL|LL|(LLS)*3|LS", (2, 2, 6, 2), 7, "stage 3 has 9 layers where the backbone has 6"),
        ("LLL|LL|LLSLLS|LS", (2, 2, 6, 2), 2, "stage 1 has 3 layers"),
        ("LL|LL|LLSLLS", (2, 2, 6, 2), 12, "3 stages where the backbone has 4"),
        ("LL|LL|LLSLLS|LS|L", (2, 2, 6, 2), 16, "5 stages where the backbone has 4"),
    ],
)
def test_checks_itself_against_the_depths(text, depths, position, reason):
    with pytest.raises(PatternError) as caught:
        parse_pattern(text, depths=depths)
    assert caught.value.position == position
    assert reason in str(caught.value)


def test_names_the_letters_that_are_allowed():
    with pytest.raises(PatternError, match="letter 'X' names no mixer; allowed: L, S") as caught:
        parse_pattern("L*2|(SX)*2", letters={"S", "L"})
    assert caught.value.position == 6
    assert parse_pattern("L|S", letters={"S", "L"}) == ("L", "S")


def test_refuses_what_is_no_text():
    with pytest.raises(TypeError, match="expected a str, got list"):
        parse_pattern(["L"])


blanks = st.sampled_from(["", " ", "  ", "\t"])


@st.composite
def items(draw, nesting=3):
    """(text, expansion) of one item, built along the grammar."""
    if nesting and draw(st.booleans()):
        inner = draw(st.lists(items(nesting - 1), min_size=1, max_size=3))
        text = "(" + "".join(part for part, _ in inner) + draw(blanks) + ")"
        expansion = "".join(part for _, part in inner)
    else:
        expansion = draw(st.sampled_from("ABLSZ"))
        text = draw(blanks) + expansion
    if draw(st.booleans()):
        count = draw(st.integers(1, 4))
        return f"{text}{draw(blanks)}*{draw(blanks)}{count}", expansion * count
    return text, expansion


@given(st.lists(st.lists(items(), min_size=1, max_size=3), min_size=1, max_size=4))
def test_expands_every_pattern_of_the_grammar(stages):
    text = "|".join("".join(part for part, _ in stage) for stage in stages)
    expected = tuple("".join(part for _, part in stage) for stage in stages)
    assert parse_pattern(text) == expected
    assert parse_pattern(format_pattern(expected)) == expected


@given(st.text(alphabet="LSX()*|0129 \n\tlé", max_size=30))
def test_any_text_is_a_pattern_or_an_error_that_points_into_it(text):
    try:
        stages = parse_pattern(text)
    except PatternError as error:
        position, stages = error.position, ()
    else:
        position = 0
        assert stages
    assert 0 <= position <= len(text)
    assert all(stages)
    assert set("".join(stages)) <= set("LSX")
