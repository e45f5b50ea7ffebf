"""The figures of benchmarks/CLUSTER.md: kernels and feature moments on worker processes of this machine.

`python benchmarks/cluster.py kernel` (acceptance F1, undisturbed against one process), `... moments` (F3; `--rows N`,
`--method sketch`), and `... solve` (ridge regression from a store; `--rows N`).
"""

import argparse
import os
import platform
import resource
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

import dualcalc as dc
from dualcalc import cluster


def network():
    return dc.serial(dc.Dense(1.5, 0.1), dc.Activation("relu"), dc.Dense(1.5, 0.1), dc.Activation("gelu"), dc.Dense())


def rows(n: int, d: int = 32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)


def drawn(start: int, stop: int, d: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Float64 rows and a target, from a seed and their place."""
    generator = np.random.Generator(np.random.SFC64([7, start]))
    X = generator.standard_normal((stop - start, d))
    return X, np.sin(X[:, 0])


def features(method: str, components: int):
    """A feature map of the network, from its seed."""
    net = dc.serial(dc.Dense(), dc.Activation("relu"), dc.Dense())
    from dualcalc.features import feature_map

    return feature_map(net, drawn(0, 4096)[0], components, method, random_state=0)


def kernel(n: int, tile: int) -> None:
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("TMPDIR", ".")))
    try:
        for workers in (1, 2):
            with cluster.local(workers) as client:
                run = cluster.write(network(), rows(n), folder / f"{workers}.zarr", tile=tile, client=client)
                again = cluster.write(network(), rows(n), folder / f"{workers}.zarr", tile=tile, client=client)
            print(
                f"n = {n}, {workers} workers: {run.computed} tiles in {run.seconds:.1f} s; found and checked in "
                f"{again.seconds:.1f} s"
            )
        start = time.perf_counter()
        network()(rows(n), out=folder / "k.npy", tile=tile)
        print(f"one process, to a .npy: {time.perf_counter() - start:.1f} s")
    finally:
        shutil.rmtree(folder)


def solve(n: int) -> None:
    """Coefficients for ten targets, by both methods, from a float32 store of tiles of 2000."""
    from dualcalc.solvers import solve as solved

    folder = Path(tempfile.mkdtemp(dir=os.environ.get("TMPDIR", ".")))
    X = rows(n)
    y = np.sin(X[:, :10])
    try:
        kernel = cluster.write(network(), X, folder / "k.zarr", tile=2000).store.kernel()
        for ridge in (1.0, 1e-2):
            for method, memory, rank in (("cholesky", 2**33, None), ("cholesky", 2**31, None), ("cg", 2**31, None)):
                print(f"n = {n}, ridge {ridge:g}, {memory / 2**30:g} GiB:", end=" ", flush=True)
                options = {"method": method, "memory": memory, "rank": rank, "scratch": folder}
                print(solved(kernel, y, ridge, tol=1e-6, **options), flush=True)
        print("largest memory:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "GiB")
    finally:
        shutil.rmtree(folder)


def moments(count: int, components: int, method: str) -> None:
    os.environ["JAX_ENABLE_X64"] = "1"
    import jax

    jax.config.update("jax_enable_x64", True)
    found = {}
    for workers, size in ((1, count // 10), (2, count // 10), (3, count // 10), (2, count)):
        with cluster.local(workers, memory="3GiB") as client:
            start = time.perf_counter()
            found[workers, size] = cluster.moments(partial(features, method, components), drawn, size, client=client)
            seconds = time.perf_counter() - start
            peak = max(client.run(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).values())
        d = len(found[workers, size].z)
        print(
            f"{size:,} rows, {d} features, {workers} workers: {seconds:.0f} s, at most {peak / 2**20:.2f} GiB a worker",
            flush=True,
        )
    one = found[1, count // 10].zz
    for workers in (2, 3):
        off = np.abs(found[workers, count // 10].zz - one).max() / np.abs(one).max()
        print(f"1 and {workers} workers differ by {off:.1e} of the largest entry")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["kernel", "moments", "solve"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--components", type=int, default=1024)
    parser.add_argument("--method", default="nystrom", choices=["nystrom", "sketch", "centred"])
    given = parser.parse_args()
    print(platform.processor() or platform.machine(), os.cpu_count(), "cores")
    if given.what == "kernel":
        kernel(given.rows or 20_000, 2000)
    elif given.what == "solve":
        solve(given.rows or 20_000)
    else:
        moments(given.rows or 10_000_000, given.components, given.method)
