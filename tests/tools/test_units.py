"""Unit conversion is exact, reversible and transitive, and refuses what makes no sense."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2core.errors import ToolError
from k2core_specs import load
from k2core_tools.numbers import parse_number
from k2core_tools.unit_table import Unit, all_units
from k2core_tools.units import convert, find_unit, units

UNITS = all_units()
rationals = st.builds(Fraction, st.integers(0, 10**9), st.integers(1, 10**4))


@st.composite
def same_dimension(draw: st.DrawFn) -> tuple[Unit, Unit, Unit]:
    """Three units that measure the same."""
    dimension = draw(st.sampled_from(sorted({unit.dimension for unit in UNITS})))
    of = st.sampled_from([unit for unit in UNITS if unit.dimension == dimension])
    return draw(of), draw(of), draw(of)


@given(three=same_dimension(), value=rationals)
def test_there_and_back_is_the_same_and_the_way_does_not_matter(three: tuple[Unit, Unit, Unit], value: Fraction) -> None:
    """Converting back gives the value again, and a detour over a third unit gives the same result, exactly."""
    a, b, c = three
    there = convert(value, a, b)
    assert convert(there, b, a) == value
    assert convert(convert(value, a, c), c, b) == there


@given(one=st.sampled_from(UNITS), other=st.sampled_from(UNITS), value=rationals)
def test_every_pair_of_units_gives_a_number_or_one_clear_line(one: Unit, other: Unit, value: Fraction) -> None:
    """The tool's text reads back as the converted value, or the two dimensions are named."""
    text = f"{value.numerator}/{value.denominator}"
    if one.dimension == other.dimension:
        result = units.function(to=other.symbol, unit=one.symbol, value=text)
        assert result.endswith(" " + other.symbol)
        assert parse_number(result.removesuffix(" " + other.symbol)) == convert(value, one, other)
    else:
        with pytest.raises(ToolError, match=f"cannot convert .*{one.dimension}.*{other.dimension}"):
            units.function(to=other.symbol, unit=one.symbol, value=text)


def test_every_spelling_names_one_unit() -> None:
    """No exact spelling is shared by two units, and every spelling finds its own."""
    owner: dict[str, str] = {}
    for unit in UNITS:
        for spelling in (unit.symbol, *unit.spellings):
            assert owner.setdefault(spelling, unit.symbol) == unit.symbol
            assert find_unit(spelling).symbol == unit.symbol
        assert unit.source in ("SI", "NIST", "YARD", "IAU", "IEC")


@pytest.mark.parametrize(
    ("value", "unit", "to", "result"),
    [
        ("5", "mi", "km", "8.04672 km"),
        ("5", "miles", "kilometres", "8.04672 km"),
        ("1", "m", "in", "5000/127 (about 39.3700787402) in"),
        ("212", "F", "C", "100 C"),
        ("-40", "°C", "fahrenheit", "-40 F"),
        ("0", "K", "C", "-273.15 C"),
        ("1811", "K", "C", "1537.85 C"),
        ("580367", "km2", "ha", "58036700 ha"),
        ("1", "acre", "m2", "4046.8564224 m2"),
        ("1", "mile", "m", "1609.344 m"),
        ("90", "km/h", "m/s", "25 m/s"),
        ("1", "kWh", "MJ", "3.6 MJ"),
        ("1", "GiB", "MB", "1073.741824 MB"),
        ("8", "Mb", "MB", "1 MB"),
        ("1", "atm", "Torr", "760 Torr"),
        ("1", "uk gallon", "L", "4.54609 L"),
        ("7.874", "g/cm3", "kg/m3", "7874 kg/m3"),
        ("2", "weeks", "h", "336 h"),
        ("1,500", "m", "KM", "1.5 km"),
    ],
)
def test_known_conversions(value: str, unit: str, to: str, result: str) -> None:
    """Conversions with values from the cited tables."""
    assert units.function(to=to, unit=unit, value=value) == result


@pytest.mark.parametrize(
    ("value", "unit", "to", "message"),
    [
        ("5", "mi", "kg", "cannot convert mi (length) to kg (mass)"),
        ("5", "mb", "MB", "unit 'mb' is ambiguous: Mbit, MB"),
        ("five", "m", "km", "'five' is not a number. Write it like 23.5"),
        ("1/0", "m", "km", "division by zero"),
        ("-300", "C", "K", "-300 C is below absolute zero"),
        ("", "m", "km", "'' is not a number. Write it like 23.5"),
    ],
)
def test_what_cannot_be_converted_is_said(value: str, unit: str, to: str, message: str) -> None:
    """One line says what does not fit."""
    with pytest.raises(ToolError) as caught:
        units.function(to=to, unit=unit, value=value)
    assert str(caught.value) == message


def test_an_unknown_unit_names_the_nearest() -> None:
    """A misspelt unit is answered with the unit that was probably meant."""
    with pytest.raises(ToolError, match=r"^no unit 'kilometrs'\. Nearest: km"):
        find_unit("kilometrs")


@given(name=st.text(max_size=20))
def test_any_text_as_a_unit_ends_in_a_unit_or_a_typed_error(name: str) -> None:
    """Whatever is written as a unit, the answer is a unit or one typed error."""
    try:
        assert find_unit(name) in UNITS
    except ToolError as error:
        assert str(error)


def test_declaration_is_what_the_embedded_model_was_trained_on() -> None:
    """The declaration of units is byte for byte the one in the episode format."""
    declared = load("formats/nano_episode.toml")["tools"]["units"]
    assert json.dumps(units.declaration(), sort_keys=True, separators=(",", ":"), ensure_ascii=False) == declared
    assert units.effect == "pure"
