"""Estimates for clusters: counted sizes, rates that were measured, words for people, refusals."""

import re

import numpy as np
import pytest

import dualcalc as dc
from dualcalc import gram, sizing

NET = dc.serial(dc.Dense(1.5, 0.1), dc.Activation("relu"), dc.Dense())
X = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def million():
    return sizing.kernel(NET, X, 10**6, workers=64, tile=64, price=0.04)


def test_a_kernel_of_a_million_rows(million):
    plan = million.plan
    assert (plan.n, plan.tile, plan.grid) == (10**6, (64, 64), (15625, 15625))
    assert plan.output_bytes == 4 * 10**12 and million.cholesky_bytes == 8 * 10**12
    assert million.step_seconds == 2e12 / sizing.DISK
    assert million.core_seconds == pytest.approx(plan.pairs / plan.pairs_per_second) and plan.flops_per_pair > 8
    assert million.seconds == max(million.core_seconds / 64, 4e12 / sizing.DISK)
    assert 1e8 < 10**18 / 3 / million.cholesky_core_seconds < 1e12  # products of a core per second


def test_the_rate_is_that_of_the_tile_on_a_core(million):
    """Within the noise of a busy machine: `calibrate` of the same tile, divided by the cores."""
    here = NET.plan(X, tile=64).pairs_per_second / gram.cores()
    assert here / 30 < million.plan.pairs_per_second < here * 30


def test_the_rate_of_few_rows_is_no_rate_of_calls():
    """Three rows, of which a tile is made: a sixtieth of a tile's rate, or less, where nine pairs are measured."""
    few, many = (sizing.kernel(NET, x, 10**6, workers=1, tile=512) for x in (X[:3], np.tile(X, (8, 1))))
    assert few.plan.pairs_per_second > many.plan.pairs_per_second / 20


def test_what_it_says(million):
    lines = str(million).splitlines()
    assert lines[0] == "1,000,000 x 1,000,000 pairs, 1 kernel(s) of float32, on 64 workers"
    assert lines[1] == "output    4 TB in 244,140,625 chunks of 64 x 64, at 500 MB a second"
    assert "by Cholesky 8 TB of memory" in lines[-1] and lines[-1].endswith(
        "by conjugate gradients 66.7 minutes a step"
    )
    assert re.search(r"core hours, [\d.e+]+ in money", lines[-1])


def test_more_workers_until_the_disk_is_what_takes_the_time():
    few, many = (sizing.kernel(NET, X, 10**5, workers=w, tile=64, disk=1e8) for w in (1, 10**6))
    assert few.seconds >= many.seconds == 4e10 / 1e8 and "by the disk" in str(many)


def test_moments_of_a_thousand_million_rows():
    found = sizing.moments(lambda X: X @ np.ones((8, 128)), X, 10**9, workers=64, batch=256)
    size = 8 * (1 + 128 + 1 + 128**2 + 128 + 1)
    assert (found.columns, found.tasks, found.sum_bytes) == (128, 3815, size)
    assert found.worker_bytes > 3 * size and found.seconds == found.core_seconds / 64
    assert str(found).startswith(
        "1,000,000,000 rows to sums of 128 features, on 64 workers\noutput    133 kB, by 3,815"
    )
    assert sizing.moments(lambda X: X, X, 1000, workers=64, batch=256).seconds  # one task: no worker helps


@pytest.mark.parametrize(
    "given, message",
    [
        ({"rows": 0}, "rows=0 came; a positive integer"),
        ({"rows": 1e6}, "rows=1000000.0 came"),
        ({"workers": -1}, "workers=-1"),
        ({"workers": True}, "workers=True"),
        ({"price": np.nan}, "price=nan came; a positive number"),
        ({"disk": 0}, "disk=0"),
        ({"tile": 0}, "tile=0"),
    ],
)
def test_refusals(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sizing.kernel(NET, X, **{"rows": 100, "workers": 2, **given})
