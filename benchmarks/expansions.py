"""Cost of Hermite coefficients: `python benchmarks/expansions.py [--float64]`.

First the float64 sets, degree 100 at 20,000 norms in one call, over the cost of what cannot be avoided: the values of
the activation at the same points and the matrix product of the same shapes. The three alternate, and the least time of
each counts, so that a load from elsewhere falls on all of them. Goal: a ratio of at most 3 for smooth activations and
kinks at zero (hard swish has its kinks elsewhere: nodes move with the norm, there is no one product). Then the
certified sets, in seconds per norm. Goals: 1 s at degree 100, 10 s at degree 500.
"""

import os
import platform
import sys
import time
from collections.abc import Callable

import numpy as np

from dualcalc import quadrature
from dualcalc.expansions import Profile, hermite, profile

ACTIVATIONS = ("tanh", "silu", "softplus", "mish", "gelu", "relu", "elu", "softsign", "erf", "hard_swish")
COUNT, DEGREE, SEED, REPEATS = 20_000, 100, 0, 5
RATIO, CERTIFIED = 3.0, {100: 1.0, 500: 10.0}
NORMS = np.random.default_rng(SEED).uniform(0.2, 5, COUNT)


def seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def chosen_rule(p: Profile) -> quadrature.Rule:
    """The rule that one call over all norms settles on."""
    return quadrature.choose(p, DEGREE, NORMS)


def floor(p: Profile) -> tuple[Callable, Callable]:
    """The activation's values alone, and the matrix product alone.

    Even and odd coefficients take half of the nodes and of the columns each: the product is as small as it can be.
    """
    nodes, _ = chosen_rule(p).nodes(NORMS)
    points = np.multiply.outer(NORMS, nodes)
    sides = (1,) if p.parity else (1, -1)
    tables = [
        np.random.default_rng(SEED).standard_normal((nodes.size, (DEGREE + 2 - i) // 2)) for i in range(len(sides))
    ]
    rows = max(1, quadrature.CACHE // nodes.size)

    def values() -> None:
        for i in range(0, COUNT, rows):
            for side in sides:
                p.piece(len(p.breaks) if side == 1 else 0, side * points[i : i + rows])

    def product() -> list[np.ndarray]:
        return [points @ table for table in tables]

    return values, product


def compared(p: Profile) -> np.ndarray:
    """Seconds of one call over all norms, of the values, of the product: the least of alternating runs."""
    values, product = floor(p)
    runs = [lambda: hermite(p, DEGREE, NORMS), values, product]
    return np.min([[seconds(run) for run in runs] for _ in range(REPEATS)], axis=0)


def ratio(p: Profile) -> float:
    whole, values, product = compared(p)
    return whole / (values + product)


def main() -> None:
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load}, numpy {np.__version__}\n"
    )
    print(f"degree {DEGREE}, {COUNT} norms from 0.2 to 5; seconds\n")
    print(f"{'':12}{'nodes':>7}{'hermite':>9}{'values':>9}{'product':>9}{'ratio':>7}")
    for name in ACTIVATIONS:
        p = profile(name)
        if not chosen_rule(p).shared:
            print(f"{name:12}{'':7}{min(seconds(lambda p=p: hermite(p, DEGREE, NORMS)) for _ in range(2)):9.2f}")
            continue
        whole, values, product = compared(p)
        share = whole / (values + product)
        nodes = chosen_rule(p).nodes(NORMS)[0].size
        missed = "  MISSED" if share > RATIO else ""
        print(f"{name:12}{nodes:7}{whole:9.2f}{values:9.2f}{product:9.2f}{share:7.2f}{missed}")
    if "--float64" in sys.argv:
        return
    print("\ncertified, seconds per norm; radii of the coefficients and of both tails\n")
    for name in ACTIVATIONS:
        for degree, goal in CERTIFIED.items():
            for norm in (0.2, 1.0, 5.0):
                start = time.perf_counter()
                c = hermite(name, degree, norm, certified=True)
                took = time.perf_counter() - start
                radii = [max(float(x.rad()) for x in c), float(c.tail.rad()), float(c.slope_tail.rad())]
                text = " ".join(f"{r:.0e}" for r in radii)
                print(f"{name:12}{degree:5}{norm:5.1f}{took:7.2f}  {text}{'' if took <= goal else '  MISSED'}")


if __name__ == "__main__":
    main()
