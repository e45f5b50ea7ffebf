"""The figures of benchmarks/CLUSTER.md: kernels and feature moments on worker processes of this machine.

`python benchmarks/cluster.py kernel` (acceptance F1, undisturbed against one process), `... moments` (F3; `--rows N`),
and `... plan` (what sizes beyond this machine would take, from rates measured here).
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


def sketch(components: int):
    """A feature map of the network, from its seed."""
    net = dc.serial(dc.Dense(), dc.Activation("relu"), dc.Dense())
    from dualcalc.features import feature_map

    return feature_map(net, drawn(0, 256)[0], components, "sketch", random_state=0)


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


def moments(count: int, components: int) -> None:
    os.environ["JAX_ENABLE_X64"] = "1"
    import jax

    jax.config.update("jax_enable_x64", True)
    found = {}
    for workers, size in ((1, count // 10), (2, count // 10), (2, count)):
        with cluster.local(workers, memory="3GiB") as client:
            start = time.perf_counter()
            found[workers, size] = cluster.moments(partial(sketch, components), drawn, size, client=client)
            seconds = time.perf_counter() - start
            peak = max(client.run(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).values())
        d = len(found[workers, size].z)
        print(
            f"{size:,} rows, {d} features, {workers} workers: {seconds:.0f} s, at most {peak / 2**20:.2f} GiB a worker",
            flush=True,
        )
    one, two = found[1, count // 10], found[2, count // 10]
    scale = np.abs(one.zz).max()
    print(f"1 and 2 workers differ by {np.abs(one.zz - two.zz).max() / scale:.1e} of the largest entry")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["kernel", "moments"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--components", type=int, default=1024)
    given = parser.parse_args()
    print(platform.processor() or platform.machine(), os.cpu_count(), "cores")
    if given.what == "kernel":
        kernel(given.rows or 20_000, 2000)
    else:
        moments(given.rows or 10_000_000, given.components)
