"""What every test shares: hypothesis profiles, and the rule for tests that need network namespaces.

``OPENTSM_REQUIRE_NETNS=1`` (set by .ci/run) makes a machine without namespaces fail instead of skip.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

from opentsm.lab.privileges import skip_reason

# A slow machine is not a bug: no deadline per example. CI repeats the same examples every time, so that
# it never fails by chance on a change that has nothing to do with it; `make fuzz` looks for new ones.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile(
    "fuzz", deadline=None, max_examples=20_000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@functools.cache
def netns_obstacle() -> str | None:
    """Why network namespaces cannot be made here and what to do about it; None if they can."""
    return skip_reason()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a netns test with a reason, or fail where namespaces are required."""
    if item.get_closest_marker("netns") is None or (obstacle := netns_obstacle()) is None:
        return
    if os.environ.get("OPENTSM_REQUIRE_NETNS") == "1":
        pytest.fail(f"{obstacle} (OPENTSM_REQUIRE_NETNS=1 forbids to skip)", pytrace=False)
    pytest.skip(obstacle)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A test that runs a command configures logging onto its own captured stderr, which ends with it."""
    yield
    structlog.reset_defaults()
