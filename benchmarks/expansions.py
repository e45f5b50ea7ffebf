"""Cost of Hermite coefficients: `python benchmarks/expansions.py`.

First the float64 sets, degree 100 at 20,000 norms in one call, over the cost of what cannot be avoided: the values of
the activation at the same points and the matrix product of the same shapes. The three alternate, and the least time of
each counts, so that a load from elsewhere falls on all of them. Goal: a ratio of at most 3 for smooth activations and
kinks at zero (hard swish has its kinks elsewhere: nodes move with the norm, there is no one product). Then the
certified sets, in seconds per norm. Goals: 1 s at degree 100, 10 s at degree 500.
"""

import os
import platform
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


def floor(p: Profile) -> tuple[Callable, Callable, int]:
    """The activation's values alone, the matrix product alone, and the number of nodes of the half-line."""
    rule = chosen_rule(p)
    nodes, _ = rule.nodes(NORMS)
    rows = max(1, quadrature.CACHE // nodes.size)
    tiles = [np.multiply.outer(NORMS[i : i + rows], nodes) for i in range(0, 4 * rows, rows)]
    sides = (1,) if p.parity else (1, -1)
    tables = [
        np.random.default_rng(SEED).standard_normal((nodes.size, (DEGREE + 2 - i) // 2)) for i in range(len(sides))
    ]
    calls = -(-COUNT // rows)

    def values() -> None:
        for i in range(calls):
            for side in sides:
                p.piece(len(p.breaks) if side == 1 else 0, side * tiles[i % 4])

    def product() -> None:
        for i in range(calls):
            for table in tables:
                tiles[i % 4] @ table

    return values, product, nodes.size


def main() -> None:
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load}, numpy {np.__version__}\n"
    )
    print(f"degree {DEGREE}, {COUNT} norms from 0.2 to 5; seconds\n")
    print(f"{'':12}{'nodes':>7}{'hermite':>9}{'values':>9}{'product':>9}{'ratio':>7}")
    for name in ACTIVATIONS:
        p = profile(name)
        hermite(p, DEGREE, NORMS[:10])
        if not chosen_rule(p).shared:
            print(f"{name:12}{'':7}{min(seconds(lambda p=p: hermite(p, DEGREE, NORMS)) for _ in range(2)):9.2f}")
            continue
        values, product, nodes = floor(p)
        runs = [(lambda p=p: hermite(p, DEGREE, NORMS)), values, product]
        whole, least, gemm = np.min([[seconds(run) for run in runs] for _ in range(REPEATS)], axis=0)
        ratio = whole / (least + gemm)
        print(
            f"{name:12}{nodes:7}{whole:9.2f}{least:9.2f}{gemm:9.2f}{ratio:7.2f}{'' if ratio <= RATIO else '  MISSED'}"
        )
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
