"""Every registered backend is held to the contracts; see `k2core.conformance.suite`."""

from k2core.conformance.suite import *  # noqa: F403  # the tests are collected from here
from k2core.conformance.suite import subject  # noqa: F401  # the fixture
