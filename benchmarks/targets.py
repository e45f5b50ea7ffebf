"""The numba target beside the jax target: `make bench-targets`.

k and kdot of 512 x 512 pairs (the tiles of `gram.py`) in float64, both targets in one process in alternating turns, and
the seconds until the first value (import of the emitted file included). numba runs on one core, XLA on all; `ratio` is
numba's time over jax's, below 1 where numba wins.
"""

import statistics
import time
from types import ModuleType

import jax
import numpy as np

import dualcalc as dc

jax.config.update("jax_enable_x64", True)
IDS = "relu", "erf", "gelu", "sin", "gaussian", "exp", "elu", "selu", "hard_swish", "relu6", "sqnl", "triangle", "bump"
TURNS = 7


def module(id: str, target: str) -> tuple[ModuleType, float]:
    """The emitted file, and the seconds until its first two values."""
    source = dc.emit(id, target=target)
    start = time.perf_counter()
    made = ModuleType(f"{id}_{target}")
    exec(compile(source, made.__name__, "exec"), made.__dict__)  # our own text
    for f in made.k, made.kdot:
        np.asarray(f(np.full((512, 512), 0.1), np.ones((512, 1)), np.ones((1, 512))))
    return made, time.perf_counter() - start


def seconds(f, arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(f(*arguments))
    return time.perf_counter() - start


def main() -> None:
    rng = np.random.default_rng(0)
    q = rng.uniform(0.3, 3.0, 512)
    pairs = rng.uniform(-1, 1, (512, 512)) * np.sqrt(np.outer(q, q)), q[:, None], q[None, :]
    print("| activation | jax k | numba k | ratio | jax kdot | numba kdot | ratio | first value, s: jax | numba |")
    print(f"|---{'|--:' * 8}|")
    for id in IDS:
        (jitted, first), (compiled, second) = (module(id, target) for target in ("jax", "numba"))
        cells = []
        for name in "k", "kdot":
            both = [getattr(m, name) for m in (jitted, compiled)]
            turns = [[seconds(f, pairs) for f in both] for _ in range(TURNS)]
            ours, numbas = (statistics.median(t[i] for t in turns) * 1e9 / 512**2 for i in (0, 1))
            cells += [f"{ours:.1f}", f"{numbas:.1f}", f"{numbas / ours:.2f}"]
        print(f"| {id} | {' | '.join(cells)} | {first:.1f} | {second:.1f} |", flush=True)


if __name__ == "__main__":
    main()
