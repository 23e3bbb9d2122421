"""What tests open is closed behind them."""

import pytest
from swap.parts import OPENED


@pytest.fixture(autouse=True)
def _closed():
    yield
    OPENED.close()
