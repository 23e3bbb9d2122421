"""The tables that come with k2core, ``data/countries.csv`` and ``data/elements.csv``, as rows of facts."""

import csv
from collections.abc import Mapping
from importlib.resources import files

from k2core_tools.facts import Fact

# attribute -> (column, unit, column of the year, column of the source)
COUNTRIES = {
    "capital": ("capital", "", "", "capital_source"),
    "area": ("area_km2", "km2", "area_year", "area_source"),
    "population": ("population", "people", "population_year", "population_source"),
}
ELEMENTS = {
    "symbol": ("symbol", "", "", "source"),
    "atomic number": ("atomic_number", "", "", "source"),
    "atomic weight": ("atomic_weight", "u", "", "atomic_weight_source"),
    "density": ("density", "g/cm3", "", "density_source"),
    "melting point": ("melting_point_K", "K", "", "melting_point_source"),
    "boiling point": ("boiling_point_K", "K", "", "boiling_point_source"),
}


def shipped_rows() -> tuple[list[Fact], dict[str, list[str]]]:
    """Every fact of both tables, and other names of their entities (ISO codes and symbols included)."""
    rows: list[Fact] = []
    aliases: dict[str, list[str]] = {}
    for name, attributes, short in (("countries", COUNTRIES, "iso3"), ("elements", ELEMENTS, "symbol")):
        for record in _read(name):
            entity = record["name"]
            aliases[entity] = [record[short], *(one.strip() for one in record["aliases"].split(";"))]
            for attribute, (column, unit, year, source) in attributes.items():
                if record[column]:
                    cited = record.get(source) or record["source"]
                    dated = record[year] if year else ""
                    rows.append(
                        Fact(entity=entity, attribute=attribute, value=record[column], unit=unit, source=cited, year=dated)
                    )
    return rows, aliases


def _read(name: str) -> list[Mapping[str, str]]:
    text = files(__package__).joinpath("data", f"{name}.csv").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return list(csv.DictReader(lines))
