"""Geometries as specifications: a config.json in which every number says where it is from."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from k2core.conformance.spec_files import SPECS, SpecError, check_keys, opened, text
from k2core.model.config import Geometry
from k2core.model.fields import Fields
from k2core.model.quantisation import family_config

NAMES = ("kimi_k2", "nano", "tiny")


@cache
def model_spec(name: str) -> dict[str, Any]:
    """One model's specification as it stands, checked; do not change it.

    Raises:
        SpecError: there is no such model, or its file is wrong; names file and key.
    """
    if name not in NAMES:
        raise SpecError(f"there is no model specification '{name}'. Known: {', '.join(NAMES)}.")
    return read_model(files(SPECS).joinpath("models").joinpath(f"{name}.toml"))


def model_config(name: str) -> dict[str, Any]:
    """The keys of a config.json, without a quantization_config.

    Raises:
        SpecError: as of `model_spec`.
    """
    return _values(model_spec(name)["config"])


def read_model(file: Traversable) -> dict[str, Any]:
    """A model's file.

    Raises:
        SpecError: it cannot be read, a value lacks a source that the file names, or no model of the family has such a
            config with experts in INT4.
    """
    with opened(file) as top:
        check_keys(top, ("name", "summary", "sources", "config"), ("derived",))
        top.one_of("name", (file.name.removesuffix(".toml"),), "as the file is called")
        text(top, "summary")
        sources, config = top.inside("sources"), top.inside("config")
        for source in sources.data:
            text(sources, source)
        for key in config.data:
            one = config.inside(key)
            for fields in map(one.inside, one.data) if key == "rope_scaling" else (one,):
                _check_value(fields, tuple(sources.data))
        quantised = {**_values(config.data), "quantization_config": family_config()}
        Geometry.from_config(quantised, where=f"{file}, table 'config'")
        return dict(top.data)


def _check_value(given: Fields, sources: tuple[str, ...]) -> None:
    check_keys(given, ("value", "from"))
    if not all(name in sources for name in text(given, "from").split()):
        raise given.wrong("from", f"some of {', '.join(sources)}")


def _values(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: {inner: one["value"] for inner, one in given.items()} if key == "rope_scaling" else given["value"]
        for key, given in config.items()
    }
