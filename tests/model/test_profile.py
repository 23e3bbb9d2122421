"""The profile that a checkpoint folder may carry."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2core.errors import CheckpointError
from k2core.interfaces import ModelProfile
from k2core.model.profile import NAME, read_profile, write_profile


@given(context=st.integers(1, 10**6), system=st.text() | st.none(), temperature=st.floats(0, 5), description=st.text())
def test_a_profile_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, context: int, system: str | None, temperature: float, description: str
) -> None:
    """Whatever the texts are."""
    folder = tmp_path_factory.mktemp("profile")
    profile = ModelProfile(context=context, system=system, temperature=temperature, description=description)
    write_profile(folder, profile)
    assert read_profile(folder) == profile


def test_a_folder_without_one_has_none(tmp_path: Path) -> None:
    """It is then used as any model is."""
    assert read_profile(tmp_path) is None


@pytest.mark.parametrize(
    "content", ["", "[", "[]", '{"context": "x"}', '{"context": 0}', '{"contxt": 5}', '{"context": 5, "temperature": -1}']
)
def test_a_malformed_one_is_one_clear_line(tmp_path: Path, content: str) -> None:
    """The line names the file and what is wrong."""
    (tmp_path / NAME).write_text(content)
    with pytest.raises(CheckpointError, match=NAME):
        read_profile(tmp_path)
