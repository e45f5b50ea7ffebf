"""Kernel ridge regression from a matrix on the disk: a kernel of a Zarr store, or a memory-mapped `.npy` file.

`solve` finds the coefficients (K + ridge I)^-1 y of all targets, and says how well. Where a factor fits into memory, by
a blocked Cholesky factorization; on request with the factor in a scratch file; beyond that by conjugate gradients,
preconditioned by a randomly pivoted Cholesky approximation of K, which read the matrix once per step. Numbers are
float64 whatever the matrix holds. Any array will do that gives rows and columns by slices; the command line and scripts
call this file, and it calls the pivots of `nystrom.py`.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from .nystrom import inverse_root, pivoted

__all__ = ["Solution", "solve"]

METHODS = ("auto", "cholesky", "cg")
BAND = 1024
"""Rows of a band of the Cholesky factor, at most; not tuned."""
RESTARTS = 5
"""Of conjugate gradients from the true residual, where rounding has moved it away from the one they carry along."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Solution:
    """What `solve` found. `str(solution)` says it in words.

    coefficients  (n,) or (n, targets), float64: predictions are K(X_test, X) @ coefficients
    method        "cholesky" or "cg"
    residual      |y - (K + ridge I) coefficients| / |y|, of the worst target, computed at the end from the matrix
    converged     whether that is at most the tolerance
    history       of "cg": the same before each step, as the method carries it along
    rank          of "cg": the pivots of its preconditioner
    seconds       in all
    """

    coefficients: np.ndarray
    method: str
    residual: float
    converged: bool
    history: tuple[float, ...]
    rank: int
    seconds: float

    @property
    def steps(self) -> int:
        """Of "cg"; 0 where the guess is as good as was asked."""
        return max(len(self.history) - 1, 0)

    def __str__(self) -> str:
        steps = f", {self.steps} steps, preconditioner of rank {self.rank}" if self.method == "cg" else ""
        verdict = "converged" if self.converged else "NOT converged"
        return f"{verdict}: relative residual {self.residual:.2g} by {self.method}{steps}, {self.seconds:.1f} s"


def solve(
    K: Any,
    y: Any,
    ridge: float,
    *,
    method: str = "auto",
    tol: float = 1e-8,
    memory: int = 2**32,
    scratch: str | os.PathLike[str] | None = None,
    most: int = 1000,
    rank: int | None = None,
    guess: Any = None,
    random_state: Any = 0,
    progress: Progress | None = None,
) -> Solution:
    """Coefficients a of kernel ridge regression, (K + ridge I) a = y.

    K         (n, n), symmetric: `Store.kernel("ntk")`, `np.load("K.npy", mmap_mode="r")`, or an array in memory
    y         (n,) or (n, targets)
    ridge     0 or more, in units of K
    method    "cholesky": n^3/3 multiplications. "cg": n^2 a step, and as many steps as the spectrum asks for. "auto":
              the first where its factor, 8 n^2 bytes and some bands of it, fits into `memory`, or a `scratch` is given
    tol       the relative residual from which on a solution counts as converged, and "cg" ends
    memory    bytes that this may take
    scratch   a folder for the factor of "cholesky" where it does not fit: 4 n^2 bytes there, removed at the end
    most      steps of "cg"; where they do not suffice, what they reached is returned, with `converged` False
    rank      of the preconditioner of "cg" (0 for none); 10 sqrt(n) or what fits into a half of `memory`, if not given
    guess     coefficients from which "cg" starts, such as those of a run that did not converge
    random_state   of the pivots: the same seed gives the same bits
    progress  called as ("rows" or "steps", done, of how many)

    The preconditioner is that of Frangella, Tropp & Udell (2023) with pivots by randomly pivoted Cholesky (Diaz,
    Epperly, Frangella, Tropp & Webber 2023). Raises ValueError for bad input, a matrix that is not positive definite
    with the ridge, and memory or disk that does not suffice: the message says how much is needed.
    """
    start = time.perf_counter()
    n, Y = _checked(K, y, ridge)
    if method not in METHODS:
        raise ValueError(f"method={method!r} came; one of {', '.join(METHODS)} was expected")
    for name, value, least in (("tol", tol, 0.0), ("memory", memory, 1), ("most", most, 1), ("rank", rank, 0)):
        if value is not None and not (math.isfinite(value) and value >= least):
            raise ValueError(f"{name}={value!r} came; a number of at least {least} was expected")
    fits = 8 * n * (n + 3 * min(BAND, n)) <= memory
    if method == "auto":
        method = "cholesky" if fits or scratch is not None else "cg"
    rows = _rows(K, n, memory)
    history: list[float] = []
    if method == "cholesky":
        with _factor_array(n, fits, memory, scratch) as (factor, band):
            _factorize(K, ridge, factor, band, progress)
            a = _substituted(factor, band, Y)
        found = 0
    else:
        a = np.zeros_like(Y) if guess is None else _shaped(guess, Y)
        apply, found = _preconditioner(K, ridge, rank, memory, random_state)
        a = _descend(partial(_times, K, ridge, rows), Y, apply, a, tol, int(most), history, progress)
    residual = _relative(Y - _times(K, ridge, rows, a), Y)
    coefficients = a.reshape(np.shape(y))
    seconds = time.perf_counter() - start
    return Solution(coefficients, method, residual, residual <= tol, tuple(history), found, seconds)


def _checked(K: Any, y: Any, ridge: float) -> tuple[int, np.ndarray]:
    """The number of rows, and the targets (n, t)."""
    shape = tuple(getattr(K, "shape", ()))
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise ValueError(f"a matrix of shape {shape} came; a square one was expected, (n, n)")
    if not np.issubdtype(K.dtype, np.floating):
        raise ValueError(f"a matrix of dtype {K.dtype} came; one of floats was expected")
    if isinstance(ridge, bool) or not (math.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge={ridge!r} came; a number of 0 or more was expected")
    Y = np.asarray(y)
    if Y.ndim not in (1, 2) or len(Y) != shape[0] or not Y.size or not np.issubdtype(Y.dtype, np.number):
        raise ValueError(f"y has shape {Y.shape}, dtype {Y.dtype}; ({shape[0]},) or ({shape[0]}, targets) was expected")
    if np.iscomplexobj(Y) or not np.isfinite(Y).all():
        raise ValueError("y has complex, NaN or infinite entries; drop or mend such rows")
    return shape[0], Y.reshape(len(Y), -1).astype(float)


def _shaped(guess: Any, Y: np.ndarray) -> np.ndarray:
    a = np.array(guess, float)
    if a.size != Y.size or len(a) != len(Y) or not np.isfinite(a).all():
        raise ValueError(f"a guess of shape {a.shape} came; finite numbers of the shape of y were expected")
    return a.reshape(Y.shape)


def _relative(residual: np.ndarray, Y: np.ndarray) -> float:
    """Of the worst target."""
    sizes = np.linalg.norm(Y, axis=0)
    return float((np.linalg.norm(residual, axis=0) / np.where(sizes > 0, sizes, 1.0)).max())


# The matrix ---------------------------------------------------------------------------------------------------------


def _rows(K: Any, n: int, memory: int) -> int:
    """Rows that are read at a time: whole chunks, a quarter of the memory."""
    most = max(memory // (4 * 8 * n), 1)
    chunk = getattr(K, "chunks", None)
    return max(min(most, n) // chunk[0] * chunk[0], chunk[0]) if chunk else min(most, n, 4096)


def _band(K: Any, first: int, stop: int) -> np.ndarray:
    """A copy of rows of the upper triangle, (stop - first, n - first): by symmetry all that is needed."""
    return np.array(K[first:stop, first:], float)


def _times(K: Any, ridge: float, rows: int, v: np.ndarray) -> np.ndarray:
    """(K + ridge I) v, for v (n, t), from one half of the matrix."""
    out = ridge * v
    for first in range(0, len(v), rows):
        stop = min(first + rows, len(v))
        band = _band(K, first, stop)
        out[first:stop] += band @ v[first:]
        out[stop:] += band[:, stop - first :].T @ v[first:stop]
    return _finite(out)


def _finite(numbers: np.ndarray) -> np.ndarray:
    if not np.isfinite(numbers).all():
        raise ValueError("the matrix has NaN or infinite entries; compute it again")
    return numbers


# Cholesky -----------------------------------------------------------------------------------------------------------


@contextmanager
def _factor_array(
    n: int, fits: bool, memory: int, scratch: str | os.PathLike[str] | None
) -> Iterator[tuple[np.ndarray, int]]:
    """An empty (n, n) in memory, or in a file that is gone afterwards; and the rows of a band."""
    if fits:
        yield np.empty((n, n)), min(BAND, n)
        return
    band = int(memory // (4 * 8 * n))
    if scratch is None or band < 1:
        least = 8 * n * (n + 3 * min(BAND, n)) if scratch is None else 4 * 8 * n
        raise ValueError(
            f"the factor of {n} rows needs {least / 1e9:.3g} GB, memory is {memory / 1e9:.3g} GB; give as much, a "
            "folder `scratch` for a factor on the disk, or method='cg'"
        )
    try:
        free = shutil.disk_usage(scratch).free
    except OSError as error:
        raise ValueError(f"scratch={os.fspath(scratch)!r}: {error}; expected a folder") from None
    if free < 4 * n * (n + 4096):  # rows of the lower half are never written: holes
        raise ValueError(f"{scratch} has {free / 1e9:.3g} GB free, the factor needs {4 * n * n / 1e9:.3g}; make room")
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".factor-") as folder:
        yield np.memmap(os.path.join(folder, "factor"), float, "w+", shape=(n, n)), min(band, BAND, n)


def _factorize(K: Any, ridge: float, U: np.ndarray, band: int, progress: Progress | None) -> None:
    """U'U = K + ridge I, band by band of rows, each from all above it ("left-looking"): one band of K at a time."""
    n = len(U)
    for first in range(0, n, band):
        stop = min(first + band, n)
        S = _band(K, first, stop)
        if not np.isfinite(S).all():
            raise ValueError(f"the matrix has NaN or infinite entries from row {first} on; compute it again")
        largest = S.diagonal().max()
        S[np.diag_indices(stop - first)] += ridge
        for above in range(0, first, band):
            S -= U[above : above + band, first:stop].T @ U[above : above + band, first:]
        try:
            corner = cholesky(S[:, : stop - first], lower=False, check_finite=False)
        except LinAlgError:
            rounding = 4 * math.sqrt(n) * float(np.finfo(K.dtype).eps) * largest
            raise ValueError(
                f"K + ridge I is not positive definite in the rows {first} to {stop}; rounding in a {K.dtype} matrix "
                f"moves eigenvalues by up to about {rounding:.2g}: give a ridge above that"
            ) from None
        U[first:stop, first:stop] = corner
        if stop < n:
            U[first:stop, stop:] = solve_triangular(corner, S[:, stop - first :], trans="T", check_finite=False)
        if progress:
            progress("rows", stop, n)


def _substituted(U: np.ndarray, band: int, Y: np.ndarray) -> np.ndarray:
    """The solution a of U'U a = Y."""
    a, n = Y.copy(), len(U)
    for first in range(0, n, band):
        stop = min(first + band, n)
        a[first:stop] = solve_triangular(U[first:stop, first:stop], a[first:stop], trans="T", check_finite=False)
        a[stop:] -= U[first:stop, stop:].T @ a[first:stop]
    for first in reversed(range(0, n, band)):
        stop = min(first + band, n)
        a[first:stop] -= U[first:stop, stop:] @ a[stop:]
        a[first:stop] = solve_triangular(U[first:stop, first:stop], a[first:stop], check_finite=False)
    return a


# Conjugate gradients ------------------------------------------------------------------------------------------------


def _preconditioner(
    K: Any, ridge: float, rank: int | None, memory: int, random_state: Any
) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """(v -> P^-1 v, rank): P is K + ridge I on the span of U, and the least of its values there on the rest, for the
    approximation K ~ U diag(values) U' from pivots."""
    n = K.shape[0]
    most = memory // (2 * 5 * 8 * n)  # pivoted columns, their factor, U, and two in between
    count = int(min(n, most, 10 * math.sqrt(n) if rank is None else rank))
    if rank is not None and count < min(rank, n):
        raise ValueError(f"a preconditioner of rank {rank} needs {80 * n * rank / 1e9:.3g} GB of memory; give as much")
    if not count:
        return np.copy, 0
    step = _rows(K, n, memory)
    bands = [(i, min(i + step, n)) for i in range(0, n, step)]
    diagonal = np.concatenate([np.asarray(K[i:j, i:j], float).diagonal() for i, j in bands])
    if not (np.isfinite(diagonal).all() and diagonal.min() >= 0 and diagonal.max() > 0):
        raise ValueError(
            "the diagonal of the matrix is zero, or has negative, NaN or infinite entries; compute it again"
        )

    def columns(indices: np.ndarray) -> np.ndarray:
        order = np.argsort(indices)
        found = np.empty((n, len(indices)))
        found[:, order] = np.asarray(getattr(K, "oindex", K)[indices[order]], float).T
        return _finite(found)

    eps = float(np.finfo(K.dtype).eps)
    chosen, values = pivoted(columns, diagonal, count, eps, np.random.default_rng(random_state))
    core = values[chosen]
    F = values @ inverse_root((core + core.T) / 2, eps)
    squares, turn = np.linalg.eigh(F.T @ F)
    kept = squares > squares[-1] * eps
    squares, U = squares[kept], F @ (turn[:, kept] / np.sqrt(squares[kept]))
    gains = (squares[0] + ridge) / (squares + ridge) - 1
    return lambda v: v + U @ (gains[:, None] * (U.T @ v)), len(squares)


def _descend(times, Y, precondition, a, tol: float, most: int, history: list[float], progress) -> np.ndarray:
    """Conjugate gradients for all targets in step, since a step reads the whole matrix; restarted where the residual
    that it carries along has reached `tol`, and the true one has not."""
    sizes = np.linalg.norm(Y, axis=0)
    reached, least = math.inf, max(tol, 2.0**-55)  # below that a step changes nothing
    for _ in range(RESTARTS):
        r = Y - times(a) if a.any() else Y.copy()
        before, reached = reached, _relative(r, Y)
        if reached <= tol or reached > before / 2 or len(history) > most:  # rounding is all that is left
            break
        z = precondition(r)
        p, rz = z, np.einsum("nt,nt->t", r, z)
        while True:
            history.append(_relative(r, Y))
            if progress:
                progress("steps", len(history) - 1, most)
            if history[-1] <= least or len(history) > most:
                break
            active = np.linalg.norm(r, axis=0) > least * sizes
            Kp = times(p)
            curvature = np.einsum("nt,nt->t", p, Kp)
            if (curvature[active] <= 0).any():
                raise ValueError(
                    f"K + ridge I is not positive definite: after {len(history) - 1} steps a direction has curvature "
                    f"{curvature[active].min():.2g}; give a larger ridge"
                )
            step = np.where(active, rz / np.where(active, curvature, 1.0), 0.0)
            a = a + step * p
            r = r - step * Kp
            z = precondition(r)
            turned = np.einsum("nt,nt->t", r, z)
            p = z + np.where(active, turned / np.where(active, rz, 1.0), 0.0) * p
            rz = turned
    return a
