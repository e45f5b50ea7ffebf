"""Which cases of a test run in the exhaustive tier alone: those whose code XLA compiles for seconds, like others."""

from collections.abc import Collection, Iterable

import pytest


def thinned(cases: Iterable, slow: Collection) -> list:
    """The parameters of a test (of several, where they are tuples), those in `slow` marked so."""
    rows = [(case, case if isinstance(case, tuple) else (case,)) for case in cases]
    return [pytest.param(*row, marks=[pytest.mark.slow] * (case in slow)) for case, row in rows]
