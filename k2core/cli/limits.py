"""Budgets as settings: a preset, and whatever is set beside it."""

from collections.abc import Mapping

from k2core.agent.budget import EFFORTS, Limits
from k2core.cli.settings import Settings
from k2core.interfaces import Prices

LIMITS: Mapping[str, str] = {  # setting: budget
    "calls": "calls", "tokens": "tokens", "thinking_tokens": "reasoning_tokens", "seconds": "seconds", "cost": "cost",
}  # fmt: skip
PRICES: Mapping[str, str] = {"price_prompt": "prompt", "price_cached": "cached", "price_generated": "generated"}


def limits_of(settings: Settings) -> Limits:
    """Those of the effort, but for what is set on its own."""
    return EFFORTS[settings["effort"]].changed(wanted(settings))


def wanted(settings: Settings) -> dict[str, float | None]:
    """Budgets that are set on their own, by name."""
    return {budget: settings[name] for name, budget in LIMITS.items() if settings[name] is not None}


def prices_of(settings: Settings) -> Prices | None:
    """Prices that are set; None where none is, so that the model's own count."""
    found = {price: settings[name] for name, price in PRICES.items() if settings[name] is not None}
    return Prices(**found) if found else None
