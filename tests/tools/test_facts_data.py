"""The shipped tables of countries and elements are complete, well formed, sourced, and agree with common knowledge."""

import csv
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from importlib.resources import files

import pytest

from k2core_tools.facts import FactsStore

HEADERS = {
    "countries": "name,iso3,aliases,capital,capital_source,capital_note,area_km2,area_year,area_source,"
    "population,population_year,population_source",
    "elements": "name,symbol,aliases,atomic_number,source,atomic_weight,atomic_weight_source,density,density_source,"
    "melting_point_K,melting_point_source,boiling_point_K,boiling_point_source,note",
}
SOURCES = {"CIA World Factbook", "World Bank", "GeoNames", "IUPAC", "CIAAW", "CRC"}
SUBLIMES_BELOW_ITS_MELTING_POINT = {"arsenic"}  # melts only under pressure; data/README.md


@pytest.fixture(scope="module")
def shipped() -> Iterator[FactsStore]:
    """The store over the shipped tables."""
    with closing(FactsStore.shipped()) as store:
        yield store


def raw(table: str) -> bytes:
    """The file as it is shipped."""
    return files("k2core_tools").joinpath("data", f"{table}.csv").read_bytes()


def rows(table: str) -> list[dict[str, str]]:
    """Its records; a row with a wrong number of cells fails here."""
    header, *records = csv.reader(raw(table).decode("utf-8").splitlines(), strict=True)
    return [dict(zip(header, record, strict=True)) for record in records]


def folded(name: str) -> str:
    """*name* as a look-up compares it: without case, accents and punctuation."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name).casefold() if not unicodedata.combining(c))
    return " ".join("".join(c if c.isalnum() else " " for c in plain.replace("'", "")).split())


@pytest.mark.parametrize("table", HEADERS)
def test_file_form(table: str) -> None:
    """Each table is UTF-8 with LF, has the documented header, is sorted by name and has no stray blanks."""
    text = raw(table)
    assert b"\r" not in text and text.endswith(b"\n") and not text.endswith(b"\n\n") and not text.startswith(b"\xef\xbb\xbf")
    assert text.decode("utf-8").splitlines()[0] == HEADERS[table]
    names = [row["name"] for row in rows(table)]
    assert names == sorted(names)
    assert [(row["name"], cell) for row in rows(table) for cell in row.values() if cell != cell.strip() or "  " in cell] == []


def test_no_name_means_two_entities() -> None:
    """Names, aliases, ISO codes and symbols are all different, within and across both tables, as a look-up compares them."""
    owners: dict[str, str] = {}
    doubled = []
    for table, code in (("countries", "iso3"), ("elements", "symbol")):
        for row in rows(table):
            for name in (row["name"], row[code], *filter(None, row["aliases"].split(";"))):
                if owners.setdefault(folded(name), row["name"]) != row["name"] or not folded(name):
                    doubled.append((name, row["name"], owners[folded(name)]))
            aliases = [folded(alias) for alias in row["aliases"].split(";") if alias]
            if len(set(aliases) - {folded(row["name"])}) != len(aliases):
                doubled.append((row["name"], row["aliases"], "repeats itself"))
    assert doubled == []


def test_countries_are_complete() -> None:
    """All 193 members of the United Nations, two observers, Kosovo and Taiwan, the smallest states among them."""
    codes = [row["iso3"] for row in rows("countries")]
    assert len(codes) == len(set(codes)) == 197
    assert all(len(code) == 3 and code.isascii() and code.isupper() for code in codes)
    assert {
        "VAT",
        "PSE",
        "XKX",
        "TWN",
        "MCO",
        "NRU",
        "TUV",
        "SMR",
        "LIE",
        "MHL",
        "KNA",
        "MDV",
        "MLT",
        "GRD",
        "AND",
        "PLW",
    } <= set(codes)
    assert all(row["capital"] for row in rows("countries"))


def test_every_country_figure_has_year_and_source() -> None:
    """Area and population are positive and carry a year and a documented source; capitals carry a source."""
    for row in rows("countries"):
        assert Decimal(row["area_km2"]) > 0 and int(row["population"]) > 0, row["name"]
        assert 2020 <= int(row["area_year"]) <= 2026 and 2020 <= int(row["population_year"]) <= 2026, row["name"]
        assert {row["area_source"], row["population_source"], row["capital_source"]} <= SOURCES, row["name"]


def test_country_figures_are_plausible() -> None:
    """The world's land and people add up, and no density of population is outside what exists (Mongolia to Monaco)."""
    countries = rows("countries")
    assert 130e6 < sum(float(row["area_km2"]) for row in countries) < 137e6
    assert 8.0e9 < sum(int(row["population"]) for row in countries) < 8.4e9
    for row in countries:
        assert 1.5 < int(row["population"]) / float(row["area_km2"]) < 25_000, row["name"]


def test_elements_are_complete() -> None:
    """There are 118 elements with the atomic numbers 1 to 118 and as many well-formed symbols."""
    elements = rows("elements")
    assert sorted(int(row["atomic_number"]) for row in elements) == list(range(1, 119))
    symbols = {row["symbol"] for row in elements}
    assert len(symbols) == 118 and all(1 <= len(s) <= 2 and s.isalpha() and s == s.capitalize() for s in symbols)
    assert all(row["name"].islower() and row["name"].isascii() for row in elements)


def test_every_element_figure_has_a_source() -> None:
    """A figure has a documented source and an empty cell has none; weights, densities and temperatures are positive."""
    for row in rows("elements"):
        assert row["source"] == "IUPAC" and row["atomic_weight"]
        columns = (("atomic_weight", "atomic_weight"), ("density", "density"), ("melting_point_K", "melting_point"))
        for column, stem in (*columns, ("boiling_point_K", "boiling_point")):
            source = row[f"{stem}_source"]
            assert bool(row[column]) == bool(source), (row["name"], column)
            assert not source or (source in SOURCES and Decimal(row[column]) > 0 and "E" not in row[column]), (
                row["name"],
                column,
            )


def test_elements_melt_before_they_boil() -> None:
    """Melting points are not above boiling points, but for arsenic, which sublimes; the note says so there."""
    for row in rows("elements"):
        if row["melting_point_K"] and row["boiling_point_K"]:
            in_order = Decimal(row["melting_point_K"]) <= Decimal(row["boiling_point_K"])
            assert in_order == (row["name"] not in SUBLIMES_BELOW_ITS_MELTING_POINT), row["name"]
    assert {row["name"] for row in rows("elements") if "sublimation" in row["note"]} == {"arsenic", "carbon"}


def test_atomic_weights_follow_the_atomic_numbers() -> None:
    """Weights are between 2 and 2.8 times the atomic number, and mass numbers are whole and marked as such."""
    for row in rows("elements"):
        weight, number = Decimal(row["atomic_weight"]), int(row["atomic_number"])
        assert number == 1 or Decimal("1.98") < weight / number < Decimal("2.8"), row["name"]
        assert (row["atomic_weight_source"] == "CIAAW") == ("mass number" in row["note"]) == row["atomic_weight"].isdigit(), (
            row["name"]
        )


@pytest.mark.parametrize(
    ("entity", "attribute", "value"),
    [
        ("Kenya", "area", "580367"),
        ("Kenya", "capital", "Nairobi"),
        ("France", "capital", "Paris"),
        ("Japan", "capital", "Tokyo"),
        ("Brazil", "capital", "Brasilia"),
        ("Australia", "capital", "Canberra"),
        ("Kazakhstan", "capital", "Astana"),
        ("Myanmar", "capital", "Naypyidaw"),
        ("USA", "capital", "Washington, D.C."),
        ("Côte d'Ivoire", "capital", "Yamoussoukro"),
        ("Türkiye", "capital", "Ankara"),
        ("Canada", "area", "9984670"),
        ("Iceland", "area", "103000"),
        ("Vatican", "area", "0.44"),
        ("Nauru", "area", "21"),
        ("iron", "melting point", "1811"),
        ("iron", "symbol", "Fe"),
        ("gold", "atomic number", "79"),
        ("gold", "melting point", "1337.33"),
        ("copper", "melting point", "1357.77"),
        ("copper", "density", "8.96"),
        ("mercury", "boiling point", "629.769"),
        ("wolfram", "symbol", "W"),
        ("tungsten", "density", "19.3"),
        ("sulphur", "atomic weight", "32.06"),
        ("aluminum", "density", "2.7"),
        ("oxygen", "boiling point", "90.188"),
        ("carbon", "atomic weight", "12.011"),
        ("oganesson", "atomic weight", "294"),
    ],
)
def test_common_knowledge(shipped: FactsStore, entity: str, attribute: str, value: str) -> None:
    """Well-known facts are found under well-known names."""
    assert shipped.lookup(entity, attribute).value == value


@pytest.mark.parametrize(
    ("country", "least", "most"),
    [
        ("India", 1.4e9, 1.5e9),
        ("China", 1.38e9, 1.43e9),
        ("United States", 3.3e8, 3.5e8),
        ("Germany", 8.2e7, 8.6e7),
        ("Tuvalu", 9e3, 1.2e4),
    ],
)
def test_known_populations(shipped: FactsStore, country: str, least: float, most: float) -> None:
    """Populations have the right size."""
    assert least < int(shipped.lookup(country, "population").value) < most


def test_rendered_with_year_and_source(shipped: FactsStore) -> None:
    """What a model reads names source and year."""
    assert shipped.lookup("Kenya", "area").render() == "580367 km2 [CIA World Factbook, 2026]"
    assert shipped.lookup("iron", "melting point").render() == "1811 K [CRC]"
    assert shipped.lookup("Kenya", "population").render().endswith(" people [World Bank, 2024]")
