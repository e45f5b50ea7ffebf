"""Feature maps of networks: `psi(x).psi(y) ~ K(x, y)` for the NNGP or the NTK, from random sketches of powers of rows.

The kernel of a fully connected network of any depth is a power series in the cosine (`series.py`). Its degrees 0 and 1
are features as they stand; sketches of tensor powers of the row give the others. Sketches need no data (but its range
of norms): one pass, in any order, on any machine. `estimators.py` is the caller. MATH.md section 9.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.special
from jax import Array
from scipy.linalg import hadamard

from .layers import pytree
from .networks import Network, _points, _traced
from .series import ONE_NORM, TOL, Series, series

MARGIN = 1.25
"""The range of norms is wider than that of the data by this factor on either side."""

BATCH = 2**26  # bytes of the intermediate arrays of a batch of rows
SAMPLE = 2000  # rows that a centre is made from
LARGEST = 1024  # size of a Hadamard matrix


# ---- the feature map ------------------------------------------------------------------------------------------------


@pytree(leaves=("series", "centre", "projections"), static=("method", "d", "exact", "sketched", "normalize"))
@dataclass(frozen=True, eq=False)
class FeatureMap:
    """psi of rows (n, d), real, with psi(x).psi(y) ~ K(x, y). Build it with `sketch`.

    series        the power series of the kernel, with its error
    centre        of method="centred"; else None
    projections   random arrays of the method
    d             features of a row
    exact         columns of the lowest degrees (0, and 1 where it fits), which are taken as they are
    sketched      columns of the sketch of the other degrees
    """

    series: Series
    centre: Centre | None
    projections: Mapping[str, Any]
    method: str
    d: int
    exact: tuple[int, ...]
    sketched: int
    normalize: bool

    @property
    def n_components(self) -> int:
        return sum(self.exact) + self.sketched

    @property
    def error(self) -> float:
        """Bounds |E psi(x).psi(y) - K(x, y)| over sqrt(K(x, x) K(y, y)): the error of the series.

        Of a centred map the data's own rows add what `Centre.loss` says."""
        return self.series.error + (0.0 if self.centre is None else self.centre.loss)

    def __call__(self, X) -> Array:
        """Features (n, n_components) of rows (n, d), dense or scipy.sparse, in their precision.

        ValueError for rows of another d, and for norms outside the range that the map was made for."""
        if not scipy.sparse.issparse(X) and _traced((self, X)):
            return _features(self, X)
        X = _rows(X)
        if X.shape[1] != self.d:
            raise ValueError(f"X has shape {X.shape}; (n, {self.d}) was expected, as in the data of the feature map")
        self._check_norms(_norms(X))
        step = int(np.clip(BATCH // self._bytes_per_row(X), 16, 1024))
        parts = []
        for start in range(0, X.shape[0], step):
            rows = X[start : start + step]
            size = step if start else min(step, 1 << max(4, (rows.shape[0] - 1).bit_length()))  # few shapes
            parts.append(self._batch(rows, size)[: rows.shape[0]])
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    def _batch(self, rows, size: int) -> Array:
        """The features of a batch that is padded with zero rows to `size`."""
        padding = ((0, size - rows.shape[0]), (0, 0))
        if not scipy.sparse.issparse(rows):
            return _features(self, jnp.pad(rows, padding))
        a = _norms(rows)
        unit = scipy.sparse.diags_array(1 / np.where(a == 0, 1.0, a) / math.sqrt(self.d)).astype(rows.dtype) @ rows
        powers = np.stack([unit @ np.asarray(leaf) for leaf in self.projections["leaves"]])
        x = unit.toarray() if len(self.exact) > 1 else np.zeros((len(a), 1), rows.dtype)
        a, x = np.pad(a, padding[:1]), np.pad(x, padding)
        return _combined(self, jnp.asarray(a), jnp.asarray(x), jnp.asarray(np.pad(powers, ((0, 0), *padding))))

    def _bytes_per_row(self, X) -> int:
        steps = len(self.projections["leaves"]) if scipy.sparse.issparse(X) else 8
        return max(self.n_components, self.d) * steps * X.dtype.itemsize

    def _check_norms(self, a: np.ndarray) -> None:
        low, high = self.series.norms
        zero = a == 0
        outside = ~zero & ~((a >= low * (1 - ONE_NORM)) & (a <= high * (1 + ONE_NORM)))
        if np.isnan(np.asarray(self.series.at_zero)).any():
            outside |= zero
        if outside.any():
            row = int(np.argmax(outside))
            raise ValueError(
                f"row {row} of X has |x|/sqrt(d) = {a[row]:.6g}, outside the range {low:.6g} to {high:.6g} that the "
                "feature map was made for; scale the row, or give sketch(..., norms=(least, greatest)) a wider range"
            )


@jax.jit
def _features(psi: FeatureMap, X: Array) -> Array:
    """Of dense rows (n, d)."""
    length = jnp.sqrt(jnp.einsum("nd,nd->n", X, X, precision="highest"))
    x = X / jnp.where(length == 0, 1, length)[:, None]
    return _concatenated(psi, length / math.sqrt(psi.d), x, None)


@jax.jit
def _combined(psi: FeatureMap, a: Array, x: Array, powers: Array) -> Array:
    """Of norms (n,), unit rows (n, d), which degree 1 alone needs, and their products with the leaves."""
    return _concatenated(psi, a, x, powers)


def _concatenated(psi: FeatureMap, a: Array, x: Array, powers: Array | None) -> Array:
    V = psi.series(a)
    if psi.centre is not None:
        along = x @ psi.centre.direction.astype(x.dtype)
        V, x = psi.centre(V, along), x - along[:, None] * psi.centre.direction.astype(x.dtype)[None]
    blocks = [V[:, 0, : psi.exact[0]]]
    if len(psi.exact) > 1:
        blocks.append((V[:, 1, : psi.exact[1] // psi.d, None] * x[:, None, :]).reshape(len(a), -1))
    if psi.sketched:
        V = V * (jnp.arange(V.shape[1]) >= len(psi.exact))[None, :, None].astype(V.dtype)
        block = METHODS[psi.method].apply(psi.projections, V, x, powers)
        if psi.normalize:
            squares = jnp.einsum("nd,nd->n", x, x)[:, None] ** np.arange(V.shape[1])[None, :]
            exact, own = jnp.einsum("njr,njr,nj->n", V, V, squares), jnp.einsum("nm,nm->n", block, block)
            block = block * jnp.sqrt(jnp.where(own > 0, exact / jnp.where(own > 0, own, 1), 0))[:, None]
        blocks.append(block)
    return jnp.concatenate(blocks, axis=1)


# ---- centring -------------------------------------------------------------------------------------------------------


@pytree(leaves=("direction", "basis"), static=("loss",))
@dataclass(frozen=True, eq=False)
class Centre:
    """The series around the mean direction u of data: x = alpha u + w, c = alpha alpha' + w.w', in powers of w.w'.

    Degree i has the features sqrt(C(j, i)) alpha^(j-i) V_j, j >= i, of which the data need few combinations.

    direction   u, (d,)
    basis       (p + 1, p + 1, r, s): sqrt(C(j, i)) times the combinations s of (j, r), for each i
    loss        the largest share of K(x, x) that the combinations miss on the data
    """

    direction: np.ndarray
    basis: np.ndarray
    loss: float

    @property
    def ranks(self) -> np.ndarray:
        return (self.basis != 0).any(axis=(1, 2)).sum(axis=1)

    def __call__(self, V: Array, along: Array) -> Array:
        """Coefficients (n, p + 1, s) of degrees of w, from those of degrees of x and alpha = x.u (n,)."""
        i = np.arange(V.shape[1])
        powers = along[:, None, None] ** np.maximum(i[None, None, :] - i[None, :, None], 0)
        return jnp.einsum("nij,njr,ijrs->nis", powers, V, self.basis.astype(V.dtype), precision="highest")


def _centre(found: Series, a: np.ndarray, x: np.ndarray, tol: float) -> Centre:
    """Of unit rows (n, d) with norms a: by principal components of the features of every degree."""
    mean = x.mean(axis=0)
    length = np.linalg.norm(mean)
    direction = mean / length if length > 0 else mean
    along = x @ direction
    across = np.sqrt(np.maximum(np.einsum("nd,nd->n", x, x) - along**2, 0))
    V = np.asarray(found(jnp.asarray(a)), float)
    size = np.einsum("njr,njr->n", V, V)
    V, count = V / np.sqrt(np.where(size > 0, size, 1))[:, None, None], found.degree + 1
    vectors, masses, roots = [], [], []
    for i in range(count):
        j = np.arange(count)
        root = np.sqrt(scipy.special.binom(j, i))
        features = V * (root * along[:, None] ** np.maximum(j - i, 0))[:, :, None] * across[:, None, None] ** i
        flat = features.reshape(len(V), -1)
        components = np.linalg.svd(flat, full_matrices=False)[2].T
        vectors.append(components)
        masses.append(np.square(flat @ components).max(axis=0))
        roots.append(root)
    flat_masses = np.concatenate(masses)
    order = np.argsort(flat_masses)
    small = np.zeros(len(order), bool)
    dropped = np.cumsum(flat_masses[order])
    small[order] = dropped <= tol
    keep = np.split(~small, np.cumsum([len(m) for m in masses])[:-1])
    basis = np.zeros((count, V.shape[1] * V.shape[2], max(1, max(k.sum() for k in keep))))
    for i in range(count):
        chosen = vectors[i][:, keep[i]]
        basis[i, :, : chosen.shape[1]] = chosen
    basis = basis.reshape(count, *V.shape[1:], -1) * np.array(roots)[:, :, None, None]
    return Centre(direction, basis, float(dropped[dropped <= tol].max(initial=0.0)))


# ---- Sketched Horner ------------------------------------------------------------------------------------------------


def _hartley(n: int) -> np.ndarray:
    """An orthogonal, symmetric matrix of any size whose entries are at most sqrt(2/n)."""
    angles = 2 * np.pi * np.outer(np.arange(n), np.arange(n)) / n
    return (np.cos(angles) + np.sin(angles)) / math.sqrt(n)


def _signs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return 2 * rng.integers(0, 2, shape, dtype=np.int8) - 1


def _sign_rows(rng: np.random.Generator, d: int, count: int) -> np.ndarray:
    """Random signs (d, count); columns orthogonal in blocks where d allows, which lowers the variance of products."""
    size = 1 << (d - 1).bit_length()
    if size > LARGEST:
        return _signs(rng, d, count)
    blocks = -(-count // size)
    H, signs = hadamard(size, dtype=np.int8)[:d], _signs(rng, blocks, d)
    return np.concatenate([sign[:, None] * H[:, rng.permutation(size)] for sign in signs], axis=1)[:, :count]


def _factors(count: int) -> tuple[int, int]:
    """Factors of the largest number up to `count` that has two of similar size; 1 and `count` where it is small."""
    for size in range(count, 63, -1):
        first = next(m for m in range(math.isqrt(size), 0, -1) if size % m == 0)
        if 4 * first >= size // first:
            return first, size // first
    return 1, count


class Method(NamedTuple):
    """How degrees are sketched.

    draw    (rng, d, columns, masses) -> projections: `leaves`, matrices that take rows, and whatever else
    apply   (projections, V, x, powers) -> (n, columns), where powers are the products with the leaves if known
    width   of the columns that were asked for, those that it gives
    """

    draw: Callable
    apply: Callable
    width: Callable[[int], int]


def _horner_width(columns: int) -> int:
    return math.prod(_factors(columns))


def _draw_horner(rng, d: int, columns: int, degree: int) -> dict[str, np.ndarray]:
    first, second = map(_hartley, _factors(columns))
    leaves = np.stack([_sign_rows(rng, d, columns) for _ in range(degree)])
    return {"leaves": leaves, "signs": _signs(rng, degree, columns), "first": first, "second": second}


def _apply_horner(projections, V: Array, x: Array, powers: Array | None) -> Array:
    """psi_j = V_j e + T_j(psi_(j+1), x), T(u, x) = (H S u) o (U x), S random signs, H orthogonal, U rows of signs.

    E[T(u, x).T(v, y)] = (u.v)(x.y), so that psi_0 has the whole series. T needs a flat u for a small variance: e is
    spread over all coordinates, and H = H_1 (x) H_2 keeps the sum so."""
    dtype = x.dtype
    first, second = (jnp.asarray(projections[name], dtype) for name in ("first", "second"))
    n, rank = len(x), V.shape[2]
    shape = (n, len(first), len(second))
    spread = jnp.repeat(second[:rank], len(first), axis=0).reshape(rank, len(first), len(second)) / math.sqrt(
        len(first)
    )

    def step(psi: Array, at) -> tuple[Array, None]:
        coefficients, signs, leaf, power = at
        power = x @ leaf.astype(dtype) if power is None else power
        psi = psi + jnp.einsum("nr,rij->nij", coefficients, spread)
        psi = psi * signs.astype(dtype).reshape(shape[1:])[None]
        psi = jnp.einsum("ij,njk->nik", first, psi @ second)
        return psi * power.reshape(shape), None

    steps = (V.transpose(1, 0, 2)[:0:-1], projections["signs"], projections["leaves"], powers)
    psi, _ = jax.lax.scan(step, jnp.zeros(shape, dtype), steps)
    return (psi + jnp.einsum("nr,rij->nij", V[:, 0], spread)).reshape(n, -1)


_HORNER = Method(_draw_horner, _apply_horner, _horner_width)
METHODS: Mapping[str, Method] = {"horner": _HORNER, "centred": _HORNER}


# ---- building -------------------------------------------------------------------------------------------------------


def sketch(
    net: Network,
    X,
    n_components: int,
    *,
    get: str = "ntk",
    method: str = "horner",
    random_state=0,
    degree: int | None = None,
    tol: float = TOL,
    norms: tuple[float, float] | None = None,
    normalize: bool = False,
) -> FeatureMap:
    """A feature map of at most `n_components` real columns for the kernel of a fully connected network.

    X              rows (n, d), dense or scipy.sparse: d, and the range of the norms, are taken from them
    get            "nngp" or "ntk"
    method         "horner": oblivious Sketched Horner, one sketch of fixed shape for all degrees
                   "centred": the same around the mean direction of X: for data whose rows are alike
    random_state   an integer, or a NumPy Generator: the same seed and precision give the same features to the bit
    degree, tol    of the series: see `series.series`. The error of the sketch itself falls as 1/sqrt(n_components)
    norms          (least, greatest) |x|/sqrt(d) of all rows to come; from X, with a margin of 25 %, if not given.
                   Homogeneous networks serve all norms
    normalize      scale the sketched columns of each row to their exact norm: a smaller error near the diagonal, and a
                   slight bias
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} came; one of {', '.join(map(repr, METHODS))} was expected")
    if isinstance(n_components, bool) or not isinstance(n_components, int | np.integer) or n_components < 1:
        raise ValueError(f"n_components={n_components!r} came; a positive integer was expected")
    X = _rows(X)
    found = series(net, _range(X) if norms is None else norms, get, tol=tol, degree=degree)
    centre = _centre(found, *_unit(X), tol / 10) if method == "centred" else None
    ranks, d = found.ranks if centre is None else centre.ranks, X.shape[1]
    exact: tuple[int, ...] = (int(ranks[0]),)
    if len(ranks) > 1 and ranks[0] + ranks[1] * d <= n_components:
        exact = (int(ranks[0]), int(ranks[1]) * d)
    left, needed = n_components - sum(exact), (ranks[len(exact) :] > 0).any()
    if needed and left < max(ranks):
        raise ValueError(
            f"n_components={n_components} came; at least {sum(exact) + max(ranks)} are needed, of which degree 0 takes "
            f"{exact[0]}"
        )
    columns = METHODS[method].width(left) if needed else 0
    rng = np.random.default_rng(random_state)
    projections = METHODS[method].draw(rng, d, columns, found.degree) if columns else {"leaves": np.zeros((0, d, 0))}
    kind = X.dtype if scipy.sparse.issparse(X) else np.int8
    projections["leaves"] = projections["leaves"].astype(kind)
    projections = jax.tree.map(jnp.asarray, projections)
    return FeatureMap(found, centre, projections, method, d, exact, columns, normalize)


def _rows(X):
    """Finite floats (n, d): a JAX array, or a csr_array."""
    if not scipy.sparse.issparse(X):
        X = _points(X, "X")
        if X.ndim != 2:
            raise ValueError(f"X has shape {X.shape}; rows (n, d) were expected: features of images are in nystrom.py")
        return X
    X = scipy.sparse.csr_array(X)
    X = X.astype(np.float32 if X.dtype == np.float32 else jnp.zeros(()).dtype)
    if X.shape[0] == 0 or X.shape[1] == 0 or not np.isfinite(X.data).all():
        raise ValueError(f"sparse X of shape {X.shape} came; finite rows (n, d) were expected, at least one")
    return X


def _norms(X) -> np.ndarray:
    """|x|/sqrt(d), (n,), in the precision of the rows."""
    squares = (X * X).sum(axis=1) if scipy.sparse.issparse(X) else jnp.einsum("nd,nd->n", X, X, precision="highest")
    return np.sqrt(np.asarray(squares) / X.shape[1])


def _unit(X) -> tuple[np.ndarray, np.ndarray]:
    """Norms (n,) and unit rows (n, d) of at most SAMPLE rows."""
    rows = X[:: -(-X.shape[0] // SAMPLE)]
    a, x = _norms(rows), np.asarray(rows.toarray() if scipy.sparse.issparse(rows) else rows)
    return a, x / np.where(a == 0, 1, a)[:, None] / math.sqrt(X.shape[1])


def _range(X) -> tuple[float, float]:
    a = _norms(X)
    a = a[a > 0].astype(float)
    if not len(a):
        return 1 / MARGIN, MARGIN
    low, high = float(a.min()), float(a.max())
    margin = MARGIN if high > low * (1 + ONE_NORM) else 1.0
    return low / margin, high * margin
