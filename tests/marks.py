"""Which cases of a test run every time."""

from collections.abc import Iterable
from typing import Any

import pytest


def quick_only(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Return cases for `parametrize`; all but the quick ones are left to `make test-all`."""
    cases = list(cases)
    assert all(case in cases for case in quick), quick
    return [case if case in quick else slow(case) for case in cases]


def slow(*values: Any) -> Any:
    """Return a case, a value for each argument, that is left to `make test-all`."""
    return pytest.param(*values, marks=pytest.mark.slow)
