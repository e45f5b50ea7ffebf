"""What kernels and sums of features take beyond this machine, before anything is started there.

`kernel` is for a store of tiles (`cluster.write`) and the ridge regression from it (`solvers.solve`), `moments` for
`cluster.moments`. Rates of one core are measured here, in seconds, on a sample of rows; sizes are counted. Neither
starts a worker. The command line and scripts call this file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from . import gram
from .gram import cores, readable
from .networks import Network
from .ridge import Moments

__all__ = ["KernelEstimate", "MomentsEstimate", "kernel", "moments"]

TILE = 2048
"""Rows and columns of a chunk: 16.8 MB of float32, so that a million rows make a quarter of a million files."""
ENOUGH = 4.0
"""Seconds of computation from which a rate is known: fewer rows than a tile are repeated up to that."""
DISK = 5e8
"""Bytes per second that a shared disk gives all workers together, if not said."""


@dataclass(frozen=True)
class KernelEstimate:
    """Of a symmetric kernel matrix in a store, and of a ridge regression from it. `print` it.

    plan             the tiles and their bytes (`gram.Plan`); `seconds` and `flops` in it are those of one core
    workers          of one core each
    core_seconds     of all tiles; `seconds` on the workers, or of the disk where that takes longer
    disk             bytes per second
    cholesky_bytes   memory of a factor in float64; `cholesky_core_seconds` of its computation
    step_seconds     of one step of conjugate gradients, which reads half of the matrix
    price            of a core hour, whether a worker computes or waits for the disk; None where it was not said
    """

    plan: gram.Plan
    workers: int
    core_seconds: float
    disk: float
    cholesky_core_seconds: float
    price: float | None

    @property
    def seconds(self) -> float:
        return max(self.core_seconds / self.workers, self.plan.output_bytes / self.disk)

    @property
    def cholesky_bytes(self) -> int:
        return 8 * self.plan.n**2

    @property
    def step_seconds(self) -> float:
        return self.plan.output_bytes / self.plan.kernels / 2 / self.disk

    def figures(self) -> dict[str, Any]:
        """What it says, as numbers."""
        names = ("workers", "core_seconds", "seconds", "cholesky_bytes", "cholesky_core_seconds", "step_seconds")
        counted = {name: getattr(self.plan, name) for name in ("n", "tile", "tiles", "output_bytes", "working_bytes")}
        return counted | {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        plan, down = self.plan, self.plan.grid[0]
        bound = "the disk" if self.seconds > self.core_seconds / self.workers else "the workers"
        return "\n".join(
            [
                f"{plan.n:,} x {plan.n:,} pairs, {plan.kernels} kernel(s) of {plan.dtype}, on {self.workers} workers",
                f"output    {readable(plan.output_bytes)} in {plan.kernels * down**2:,} chunks of {plan.tile[0]} x "
                f"{plan.tile[1]}, at {readable(self.disk)} a second",
                f"worker    {readable(plan.working_bytes)} of memory, beside JAX",
                f"time      {_hours(self.seconds)}, by {bound}: {plan.pairs_per_second:.3g} pairs a second and core, "
                f"measured here; {_core_hours(self.seconds * self.workers, self.price)}",
                f"ridge     by Cholesky {readable(self.cholesky_bytes)} of memory, or half of it on the disk, and "
                f"{_core_hours(self.cholesky_core_seconds, self.price)}; by conjugate gradients "
                f"{_hours(self.step_seconds)} a step",
            ]
        )


@dataclass(frozen=True)
class MomentsEstimate:
    """Of the moments of features over any number of rows. `print` it.

    count, columns   rows, and features of each
    workers          of one core each
    tasks            blocks of rows, whose sums are sent: `sum_bytes` each
    worker_bytes     memory of a worker: sums, and a batch with its features
    core_seconds     of all rows, with their products; `seconds` on the workers
    price            of a core hour; None where it was not said
    """

    count: int
    columns: int
    workers: int
    tasks: int
    sum_bytes: int
    worker_bytes: int
    core_seconds: float
    price: float | None

    @property
    def seconds(self) -> float:
        return self.core_seconds / min(self.workers, self.tasks)

    def figures(self) -> dict[str, Any]:
        """What it says, as numbers."""
        return asdict(self) | {"seconds": self.seconds}

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.count:,} rows to sums of {self.columns:,} features, on {self.workers} workers",
                f"output    {readable(self.sum_bytes)}, by {self.tasks:,} tasks that send as much each"
                + (f": {self.workers - self.tasks:,} workers have none" if self.tasks < self.workers else ""),
                f"worker    {readable(self.worker_bytes)} of memory, beside JAX and the map itself",
                f"time      {_hours(self.seconds)}: {self.count / self.core_seconds:,.0f} rows a second and core, "
                f"measured here; {_core_hours(self.core_seconds, self.price)}",
            ]
        )


def kernel(
    net: Network,
    X: Any,
    rows: int,
    *,
    workers: int,
    get: str | tuple[str, ...] = "ntk",
    tile: int = TILE,
    disk: float = DISK,
    price: float | None = None,
) -> KernelEstimate:
    """What `cluster.write` of so many rows takes.

    X      some of the rows, at least two; a tile of them is computed twice (the first time compiles). Of fewer, whose
           rate would be that of the calls, repetitions are computed too
    rows   of the whole, such as 10**6
    disk   bytes per second of all workers together
    price  of a core hour, in any money
    """
    _positive(rows=rows, workers=workers, tile=tile, disk=disk, price=price)
    X = np.asarray(X)
    count, done = min(len(X), tile), 0
    while count >= 2 * done:
        done = count
        sample = np.resize(X, (count, *X.shape[1:]))
        work = net.work(sample, None, get, tile=tile)
        measured = gram.calibrate(work.plan, work.bound, work.rows, marks=work.mend is not None)
        seconds = count**2 / (measured.pairs_per_second or math.inf)
        count = min(tile, rows, int(count * math.sqrt(ENOUGH / max(seconds, 1e-6))))
    leaves = jax.tree.leaves(work.rows)
    plan = gram.plan(
        rows,
        bytes_per_point=max(1, sum(np.asarray(leaf).nbytes for leaf in leaves) // len(sample)),
        kernels=measured.kernels,
        dtype=measured.dtype,
        bytes_per_pair=net._bytes_per_pair(jax.numpy.asarray(sample)),
        flops_per_pair=measured.flops_per_pair,
        pairs_per_second=(measured.pairs_per_second or math.inf) / _sharing(),
        tile=tile,
    )
    return KernelEstimate(plan, workers, plan.seconds or 0.0, disk, rows**3 / 3 / _products_per_second(), price)


def moments(
    features: Callable[[np.ndarray], np.ndarray],
    X: Any,
    rows: int,
    *,
    workers: int,
    targets: int = 1,
    batch: int = 4096,
    block: int = 2**18,
    price: float | None = None,
) -> MomentsEstimate:
    """What `cluster.moments` of so many rows takes.

    features   the map, (b, d) -> (b, columns)
    X          some of the rows, drawn with repetition to one batch, which is computed twice (the first time compiles)
    rows       of the whole, such as 10**9; what reading or drawing them takes is not in it
    batch, block   as of `cluster.moments`
    """
    _positive(rows=rows, workers=workers, targets=targets, batch=batch, block=block, price=price)
    X = np.resize(np.asarray(X), (min(batch, rows), *np.shape(X)[1:]))
    seconds, columns = math.inf, 0
    for _ in range(2):
        start = time.perf_counter()
        Z = np.asarray(features(X), float)
        columns = Z.shape[1]
        sums = Moments.zero(columns, targets)
        sums.add(Z, np.zeros((len(X), targets)))
        seconds = time.perf_counter() - start
    size = sum(np.asarray(part).nbytes for part in vars(sums).values())
    worker = 3 * size + 2 * len(X) * (X[0].nbytes + 8 * columns)
    tasks = -(-rows // block)
    return MomentsEstimate(rows, columns, workers, tasks, size, worker, seconds * _sharing() * rows / len(X), price)


def _sharing() -> int:
    """The cores among which XLA and BLAS divide what is measured; 1 where a GPU does it."""
    return cores() if jax.default_backend() == "cpu" else 1


def _products_per_second() -> float:
    """Multiplications and additions of one core in a product of float64 matrices."""
    A = np.ones((1024, 1024))
    A @ A  # threads start
    start = time.perf_counter()
    A @ A
    return 1024**3 / (time.perf_counter() - start) / cores()


def _positive(**given: float | None) -> None:
    for name, value in given.items():
        kind = ("number", int | float) if name in ("disk", "price") else ("integer", int | np.integer)
        right = isinstance(value, kind[1]) and not isinstance(value, bool) and 0 < value < math.inf
        if not right and not (name == "price" and value is None):
            raise ValueError(f"{name}={value!r} came; a positive {kind[0]} was expected")


def _hours(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _core_hours(seconds: float, price: float | None) -> str:
    hours = seconds / 3600
    return f"{hours:.3g} core hours" + (f", {hours * price:.3g} in money" if price else "")
