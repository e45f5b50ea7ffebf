"""Nystrom feature maps: landmarks among the rows of the data, and the exact kernel of the whole network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from .networks import KERNELS, Network, _chosen, _points

PROPOSALS = 64
"""Pivots proposed at a time: columns of the kernel are computed together, some for proposals that are rejected."""

BATCH_BYTES = 2**26
"""Rows go through a feature map in batches whose largest array takes about so much."""


@dataclass(frozen=True, repr=False)
class Landmarks:
    """Z(X) = K(X, landmarks) K(landmarks, landmarks)^(-1/2), the result of `nystrom`.

    net, get       the kernel
    landmarks      (m, ...) rows of the data, in the order in which they were chosen
    root           (m, n_components), float64: eigenvectors of K(landmarks, landmarks) over the roots of their
                   eigenvalues, largest first, without those that are rounding (`inverse_root`)
    error          trace(K - Z Z')/trace(K) on the rows it was fitted on: 0 where the features are exact there
    """

    net: Network
    get: str
    landmarks: np.ndarray
    root: np.ndarray
    error: float

    @property
    def n_components(self) -> int:
        return self.root.shape[1]

    def __call__(self, X) -> np.ndarray:
        """Features (n, n_components), in the precision of the rows that the map was fitted on."""
        X = np.asarray(_points(X, "X"))
        if X.shape[1:] != self.landmarks.shape[1:]:
            raise ValueError(f"X has shape {X.shape}; rows of shape {self.landmarks.shape[1:]} were fitted")
        dtype = self.landmarks.dtype
        features = np.empty((len(X), self.n_components), dtype)
        for start, rows, filled in batches(X.astype(dtype), 8 * len(self.root)):
            kernel = np.asarray(self.net(filled, self.landmarks, self.get))
            features[start : start + rows] = (kernel @ self.root.astype(dtype))[:rows]
        return features

    def __repr__(self) -> str:
        return f"<{self.get} Nystrom map, {self.n_components} columns, error {self.error:.2g}, of {self.net!r}>"


def nystrom(
    net: Network,
    X,
    n_components: int,
    *,
    get: str = "ntk",
    selection: str = "pivoted",
    rows: int = 10_000,
    random_state=0,
) -> Landmarks:
    """A Nystrom feature map of the exact kernel of `net`, by landmarks among the rows of X.

    X              (n, d), or images (n, height, width, channels)
    n_components   the columns asked for; there are fewer where X has fewer distinct rows, or the kernel less rank in
                   the precision of X
    selection      "pivoted": randomly pivoted Cholesky (Chen, Epperly, Tropp, Webber 2022; proposals in blocks with
                   rejection, Epperly, Tropp, Webber 2024), which needs n_components columns of the kernel and some for
                   proposals that are rejected; "uniform": rows drawn uniformly
    rows           where X has more rows, so many (or n_components, if larger) are drawn uniformly, and the rest is not
                   looked at. Memory is that of some float64 arrays (rows, n_components); the matrix of all pairs is
                   never computed
    random_state   a seed, or a NumPy Generator: the same seed gives the same map
    Raises ValueError for bad input, and what the kernel itself raises.
    """
    if selection not in ("pivoted", "uniform"):
        raise ValueError(f"selection={selection!r} came; 'pivoted' or 'uniform' was expected")
    n_components, rows = positive(n_components, "n_components"), positive(rows, "rows")
    if get not in KERNELS:
        raise ValueError(f"get={get!r} came; 'nngp' or 'ntk' was expected")
    generator = np.random.default_rng(random_state)
    X = np.asarray(net._inputs(X, None)[0])
    X = drawn(X, max(rows, n_components), generator)
    X = X[np.sort(np.unique(X.reshape(len(X), -1), axis=0, return_index=True)[1])]
    diagonal = np.asarray(_chosen((get,), net._variances(X, get == "ntk", "X")[1])[0], float)
    if not diagonal.max() > 0:
        raise ValueError(f"the {get} of {net!r} is zero on every row of X; there is nothing to approximate")

    def columns(indices: np.ndarray) -> np.ndarray:
        return np.asarray(net(X, X[indices], get), float)

    count, eps = min(n_components, len(X)), float(np.finfo(X.dtype).eps)
    if selection == "uniform":
        chosen = generator.choice(len(X), count, replace=False)
        values = columns(chosen)
    else:
        chosen, values = pivoted(columns, diagonal, count, eps, generator)
    core = values[chosen]
    core = (core + core.T) / 2
    np.fill_diagonal(core, diagonal[chosen])
    root = inverse_root(core, eps)
    error = 1 - np.square(values @ root).sum() / diagonal.sum()
    return Landmarks(net, get, X[chosen], root, float(max(error, 0.0)))


def pivoted(
    columns: Callable[[np.ndarray], np.ndarray], diagonal: np.ndarray, count: int, eps: float, generator
) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` pivots of a positive semi-definite matrix (n, n), and its columns (n, pivots) there.

    columns    of indices (b,): those columns (n, b)
    diagonal   (n,)
    eps        of the entries: pivots end where no residual on the diagonal is above 16 eps of the largest entry

    Proposals are drawn in proportion to the residual. One that comes after others of its block is accepted with the
    ratio of its residual now to that when it was drawn, so that the pivots are distributed as if drawn one by one.
    """
    n, floor = len(diagonal), 16 * eps * diagonal.max()
    residual = np.array(diagonal, float)
    factor, values = np.zeros((2, n, count))
    chosen: list[int] = []
    while (done := len(chosen)) < count:
        weights = np.where(residual > floor, residual, 0.0)
        if not weights.any():
            break
        proposals = generator.choice(n, min(PROPOSALS, count), p=weights / weights.sum())
        luck = generator.random(len(proposals))
        block = columns(proposals)
        rest = block[proposals] - factor[proposals, :done] @ factor[proposals, :done].T
        np.fill_diagonal(rest, residual[proposals])
        accepted: list[int] = []
        steps: list[np.ndarray] = []
        for i, proposal in enumerate(proposals):
            fresh = proposal not in proposals[accepted]  # a second copy leaves a residual that is all rounding
            if fresh and len(accepted) < count - done and rest[i, i] > max(floor, luck[i] * residual[proposal]):
                steps.append(rest[i] / np.sqrt(rest[i, i]))
                rest -= np.outer(steps[-1], steps[-1])
                accepted.append(i)
        pivots = proposals[accepted]
        triangle = np.triu(np.array(steps)[:, accepted])
        left = block[:, accepted] - factor[:, :done] @ factor[pivots, :done].T
        now = slice(done, done + len(accepted))
        values[:, now] = block[:, accepted]
        factor[:, now] = solve_triangular(triangle, left.T, trans="T").T
        residual -= np.square(factor[:, now]).sum(axis=1)
        residual[pivots] = 0.0
        chosen.extend(map(int, pivots))
    return np.array(chosen, int), values[:, : len(chosen)]


def inverse_root(gram: np.ndarray, eps: float) -> np.ndarray:
    """R (m, r) with R R' the pseudo-inverse of a positive semi-definite gram (m, m), largest eigenvalues first.

    Eigenvalues up to 4 sqrt(m) eps of the largest entry are left out: entries in error by eps move eigenvalues by about
    sqrt(m) of it (measured in float32: 0.6 to 0.9 sqrt(m) on 1000 rows, half of them copies but for 1e-4)."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > 4 * np.sqrt(len(gram)) * eps * gram.diagonal().max()
    return np.ascontiguousarray((vectors[:, kept] / np.sqrt(values[kept]))[:, ::-1])  # a pickled copy multiplies alike


def batches(X: np.ndarray, bytes_per_row: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """(start, rows, block) over X, blocks of one size: the last one is filled up, so that JAX compiles once."""
    count = -(-len(X) * bytes_per_row // BATCH_BYTES)
    size = -(-len(X) // max(1, min(count, len(X))))
    for start in range(0, len(X), size):
        block = X[start : start + size]
        filling = [(0, size - len(block))] + [(0, 0)] * (X.ndim - 1)
        yield start, len(block), np.pad(block, filling, mode="edge")


def positive(value, name: str) -> int:
    """An integer of at least 1; ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r} came; a positive integer was expected")
    return int(value)


def drawn(X: np.ndarray, count: int, generator) -> np.ndarray:
    """At most `count` rows of X, drawn uniformly, in order."""
    return X if len(X) <= count else X[np.sort(generator.choice(len(X), count, replace=False))]
