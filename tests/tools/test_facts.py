"""Facts are found whatever case and accents, cited, and refused with the nearest names; the user's own tables work too."""

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2core.errors import InputError, ToolError
from k2core.interfaces import ToolContext
from k2core_specs import load
from k2core_tools.facts import Fact, FactsStore, make_facts, make_shipped_facts
from k2core_tools.nearest import nearest_names
from k2core_tools.tables import COUNTRIES, ELEMENTS

ROWS = [
    Fact(entity="Kenya", attribute="area", value="580367", unit="km2", source="CIA World Factbook", year="2026"),
    Fact(entity="Kenya", attribute="capital", value="Nairobi", source="CIA World Factbook"),
    Fact(entity="Kenya", attribute="population", value="56432944", unit="people", source="World Bank", year="2024"),
    Fact(entity="Guinea", attribute="capital", value="Conakry", source="CIA World Factbook"),
    Fact(entity="iron", attribute="melting point", value="1811", unit="K", source="CRC"),
    Fact(entity="Côte d'Ivoire", attribute="capital", value="Yamoussoukro", source="CIA World Factbook"),
]
names = st.text(alphabet=st.characters(categories=("L", "N", "Zs")), min_size=1, max_size=20).filter(str.strip)


@pytest.fixture(scope="module")
def store() -> Iterator[FactsStore]:
    """A small store with one alias."""
    with closing(FactsStore.from_rows(ROWS, {"Côte d'Ivoire": ["Ivory Coast", "CIV"], "Kenya": ["KEN"]})) as made:
        yield made


@pytest.mark.parametrize(
    ("entity", "attribute", "text"),
    [
        ("Kenya", "area", "580367 km2 [CIA World Factbook, 2026]"),
        ("kenya", "Capital", "Nairobi [CIA World Factbook]"),
        ("KEN", "population", "56432944 people [World Bank, 2024]"),
        ("Iron", "melting_point", "1811 K [CRC]"),
        ("cote d’ivoire", "capital", "Yamoussoukro [CIA World Factbook]"),
        ("ivory  coast", "CAPITAL", "Yamoussoukro [CIA World Factbook]"),
    ],
)
def test_results_have_the_frozen_form(store: FactsStore, entity: str, attribute: str, text: str) -> None:
    """VALUE UNIT [SOURCE, YEAR], found by any case, accents and aliases."""
    assert make_facts(store).function(entity=entity, attribute=attribute) == text


@pytest.mark.parametrize(
    ("entity", "attribute", "message"),
    [
        ("Kenia", "area", "no entity 'Kenia'. Nearest: Kenya, Guinea"),
        ("Kenya", "size", "no attribute 'size' of Kenya. Known: area, capital, population"),
        ("ken", "size", "no attribute 'size' of Kenya. Known: area, capital, population"),
    ],
)
def test_what_is_unknown_is_answered_with_what_is_known(store: FactsStore, entity: str, attribute: str, message: str) -> None:
    """The embedded model reads these lines: their wording is fixed."""
    with pytest.raises(ToolError) as caught:
        store.lookup(entity, attribute)
    assert str(caught.value) == message


@given(rows=st.dictionaries(st.tuples(names, names), names, min_size=1, max_size=8), asked=names, attribute=names)
def test_every_row_is_found_again_and_nothing_else(rows: dict[tuple[str, str], str], asked: str, attribute: str) -> None:
    """Each (entity, attribute) of a store is found or reported as ambiguous; any other question is a typed error."""
    facts = [Fact(entity=e, attribute=a, value=v, source="S") for (e, a), v in rows.items()]
    with closing(FactsStore.from_rows(facts)) as made:
        for entity, known in rows:
            try:
                found = made.lookup(entity, known)
                assert (found.entity, found.value) in {(e, v) for (e, _), v in rows.items()}
            except ToolError as error:
                assert "Nearest" in str(error)
        try:
            assert made.lookup(asked, attribute).value in rows.values()
        except ToolError as error:
            assert str(error).startswith(("no entity", "no attribute"))


@given(known=st.sets(names, min_size=1, max_size=30), data=st.data())
def test_a_known_name_is_its_own_nearest(known: set[str], data: st.DataObject) -> None:
    """The nearest name to a known one is itself, and the count is kept."""
    name = data.draw(st.sampled_from(sorted(known)))
    near = nearest_names(name, known, 2)
    assert near[0] == name
    assert len(near) == min(2, len(known))


def test_a_users_csv_and_sqlite_give_the_same_facts(tmp_path: Path) -> None:
    """Both forms are read; a missing source is the file's name; aliases work."""
    table = tmp_path / "own.csv"
    table.write_text("entity,attribute,value,unit,year,aliases\nTal Bridge,length,412,m,2020,Old Bridge;TB\n", encoding="utf-8")
    with closing(FactsStore.open(table)) as opened:
        assert opened.lookup("old bridge", "length").render() == "412 m [own.csv, 2020]"
    path = tmp_path / "own's.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE facts (entity, attribute, value, unit, source, year)")
        database.execute("INSERT INTO facts VALUES ('Tal Bridge', 'length', 412, 'm', NULL, 2020)")
    with closing(FactsStore.open(path)) as opened:
        assert opened.lookup("tal bridge", "length").render() == "412 m [own's.sqlite, 2020]"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot open facts .*: No such file"),
        (b"a,b\n1,2\n", "has no column entity and no attribute and no value"),
        (b"entity,attribute,value\nKenya,,\n", "a row of facts has no attribute and no value"),
        (b"entity,attribute,value\n\xff,a,b\n", "is not UTF-8 at byte"),
        (b"", "has no column entity"),
        (b"SQLite format 3\0garbage", "cannot use facts"),
    ],
)
def test_an_unusable_table_is_one_clear_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    """A missing, malformed or foreign file is refused with what is wrong."""
    path = tmp_path / "facts"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        FactsStore.open(path)


def test_a_store_serves_many_threads(store: FactsStore) -> None:
    """Look-ups from eight threads at once all succeed."""
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.extend(store.lookup("Kenya", "area").value for _ in range(20))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["580367"] * 160


def test_the_shipped_tables_answer_every_country_and_element() -> None:
    """Each entity is found by its name; figures are positive numbers with unit and source; known values are right."""
    with closing(FactsStore.shipped()) as shipped:
        entities = shipped.entities()
        assert len(entities) >= 118 + 190
        units = {name: row[1] for table in (COUNTRIES, ELEMENTS) for name, row in table.items()}
        for entity in entities:
            with pytest.raises(ToolError) as caught:
                shipped.lookup(entity, "no such thing")
            known = str(caught.value).partition("Known: ")[2].split(", ")
            assert {"capital", "area", "population"} == set(known) or {"symbol", "atomic number"} <= set(known)
            for attribute in known:
                fact = shipped.lookup(entity, attribute)
                assert fact.source
                assert fact.unit == units[attribute]
                if attribute not in ("capital", "symbol"):
                    assert Fraction(fact.value) > 0
        assert shipped.lookup("Fe", "atomic number").value == "26"
        assert shipped.lookup("KEN", "capital").value == "Nairobi"
        assert shipped.lookup("iron", "melting point").value == "1811"


def test_declaration_is_what_the_embedded_model_was_trained_on(store: FactsStore) -> None:
    """The declaration of facts is byte for byte the one in the episode format, whichever table it serves."""
    declared = load("formats/nano_episode.toml")["tools"]["facts"]
    for one in (make_facts(store), make_shipped_facts(ToolContext())):
        assert json.dumps(one.declaration(), sort_keys=True, separators=(",", ":"), ensure_ascii=False) == declared
        assert one.effect == "read"
