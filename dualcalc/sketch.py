"""Feature maps of networks: `psi(x).psi(y) ~ K(x, y)` for the NNGP or the NTK, from random sketches of powers of rows.

The kernel of a fully connected network of any depth is a power series in the cosine (`series.py`). Its degrees 0 and 1
are features as they stand; sketches of tensor powers of the row give the others. Sketches need no data (but its range
of norms): one pass, in any order, on any machine. `estimators.py` is the caller. docs/features.md says more.
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
from .series import ONE_NORM, TOL, Series, evaluated, series

MARGIN = 1.25
"""The range of norms is wider than that of the data by this factor on either side."""

BATCH = {"cpu": 2**22}
"""Bytes of one intermediate array of a batch of rows: on a CPU what its caches hold, else 2^26."""

SAMPLE = 2000  # rows that a centre is made from
LARGEST = 1024  # size of a Hadamard matrix


# ---- the feature map ------------------------------------------------------------------------------------------------


@pytree(
    leaves=("series", "centre", "projections", "loss"),
    static=("method", "d", "exact", "sketched", "components", "normalize"),
)
@dataclass(frozen=True, eq=False, repr=False)
class FeatureMap:
    """psi of rows (n, d), real, with psi(x).psi(y) ~ K(x, y). Build it with `sketch`.

    series        the power series of the kernel, with its error
    centre        of method="centred"; else None
    projections   random arrays of the method
    d             features of a row
    exact         columns of the lowest degrees (0, and 1, where they fit), which are taken as they are
    sketched      columns of the sketch of the other degrees
    components    (degree, rank, columns) of each block of a sketch that allots columns to degrees; else ()
    loss          share of K(x, x) that is missed beside the error of the series: degrees that got no column, and what a
                  centred map leaves out on the data that it was made from
    """

    series: Series
    centre: Centre | None
    projections: Mapping[str, Any]
    method: str
    d: int
    exact: tuple[int, ...]
    sketched: int
    components: tuple[tuple[int, int, int], ...]
    loss: float
    normalize: bool

    @property
    def n_components(self) -> int:
        return sum(self.exact) + self.sketched

    @property
    def error(self) -> float:
        """Bounds |E psi(x).psi(y) - K(x, y)| over sqrt(K(x, x) K(y, y)), without `normalize`."""
        return self.series.error + self.loss

    def __call__(self, X) -> Array:
        """Features (n, n_components) of rows (n, d), dense or scipy.sparse, in their precision.

        ValueError for rows of another d, and for norms outside the range that the map was made for."""
        if not scipy.sparse.issparse(X) and _traced((self, X)):
            return _features(self, X)
        X = _rows(X)
        if X.shape[1] != self.d:
            raise ValueError(f"X has shape {X.shape}; (n, {self.d}) was expected, as in the data of the feature map")
        self._check_norms(_norms(X))
        step = int(np.clip(BATCH.get(jax.default_backend(), 2**26) // self._bytes_per_row(X), 32, 2**14))
        parts = []
        for start in range(0, X.shape[0], step):
            rows = X[start : start + step]
            size = step if start else min(step, 1 << max(4, (rows.shape[0] - 1).bit_length()))  # few shapes
            parts.append(self._batch(rows, size)[: rows.shape[0]])
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    def __repr__(self) -> str:
        degree = self.series.degree
        return f"<{self.method} map, {self.n_components} columns, series of degree {degree}, error {self.error:.2g}>"

    def _batch(self, rows, size: int) -> Array:
        """The features of a batch that is padded with zero rows to `size`."""
        padding = ((0, size - rows.shape[0]), (0, 0))
        if not scipy.sparse.issparse(rows):
            return _features(self, jnp.pad(rows, padding))
        a = _norms(rows)
        unit = scipy.sparse.diags_array(1 / np.where(a == 0, 1.0, a) / math.sqrt(self.d)).astype(rows.dtype) @ rows
        leaves = self.projections["leaves"]
        leaves = leaves if isinstance(leaves, list) else np.asarray(leaves)  # views, not copies, of its parts
        powers = [np.pad(_sparse_product(unit, leaf), padding) for leaf in leaves]
        x = unit.toarray() if len(self.exact) > 1 or self.centre is not None else np.zeros((len(a), 1), rows.dtype)
        a, x = np.pad(a, padding[:1]), np.pad(x, padding)
        return _combined(self, jnp.asarray(a), jnp.asarray(x), jax.tree.map(jnp.asarray, powers))

    def _bytes_per_row(self, X) -> int:
        steps = len(self.projections["leaves"]) if scipy.sparse.issparse(X) else 1
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
def _combined(psi: FeatureMap, a: Array, x: Array, powers: list[Array]) -> Array:
    """Of norms (n,), unit rows (n, d), for degree 1 and centring alone, and their products with the leaves."""
    return _concatenated(psi, a, x, powers)


def _concatenated(psi: FeatureMap, a: Array, x: Array, powers: list[Array] | None) -> Array:
    V = psi.series(a)
    if psi.centre is not None:
        direction = psi.centre.direction.astype(x.dtype)
        along = x @ direction
        V, x = psi.centre(V, along), x - along[:, None] * direction[None]
        if powers is not None:
            leaves = psi.projections["leaves"]
            powers = [
                p - along[:, None] * (direction @ u.astype(x.dtype))[None] for p, u in zip(powers, leaves, strict=True)
            ]
    blocks = [V[:, 0, :width] for width in psi.exact[:1]]
    if len(psi.exact) > 1:
        blocks.append((V[:, 1, : psi.exact[1] // psi.d, None] * x[:, None, :]).reshape(len(a), -1))
    if psi.sketched:
        V = V * (jnp.arange(V.shape[1]) >= len(psi.exact))[None, :, None].astype(V.dtype)
        block = METHODS[psi.method].apply(psi, V, x, powers)
        if psi.normalize:
            squares = jnp.einsum("nd,nd->n", x, x)[:, None] ** jnp.arange(V.shape[1], dtype=x.dtype)[None, :]
            exact, own = jnp.einsum("njr,njr,nj->n", V, V, squares), jnp.einsum("nm,nm->n", block, block)
            block = block * jnp.sqrt(jnp.where(own > 0, exact / jnp.where(own > 0, own, 1), 0))[:, None]
        blocks.append(block)
    return jnp.concatenate(blocks, axis=1)


# ---- centring -------------------------------------------------------------------------------------------------------


@pytree(leaves=("direction", "basis"))
@dataclass(frozen=True, eq=False)
class Centre:
    """The series around the mean direction u of data: x = alpha u + w, c = alpha alpha' + w.w', in powers of w.w'.

    Degree i has the features sqrt(C(j, i)) alpha^(j-i) V_j, j >= i, of which the data need few combinations.

    direction   u, (d,)
    basis       (p + 1, p + 1, r, s): sqrt(C(j, i)) times the combinations s of (j, r), for each i
    """

    direction: np.ndarray
    basis: np.ndarray

    @property
    def ranks(self) -> np.ndarray:
        return (self.basis != 0).any(axis=(1, 2)).sum(axis=1)

    def __call__(self, V: Array, along: Array) -> Array:
        """Coefficients (n, p + 1, s) of degrees of w, from those of degrees of x and alpha = x.u (n,)."""
        powers = along[:, None] ** jnp.arange(V.shape[1], dtype=V.dtype)[None, :]
        i = np.arange(V.shape[1])
        powers = powers[:, np.maximum(i[None, :] - i[:, None], 0)]
        return jnp.einsum("nij,njr,ijrs->nis", powers, V, self.basis.astype(V.dtype), precision="highest")


def _centre(found: Series, a: np.ndarray, x: np.ndarray, tol: float, most: int) -> tuple[Centre, float]:
    """Of unit rows (n, d) with norms a: by principal components of the features of every degree, at most `most` a
    degree. The share of K(x, x) that they miss comes with it."""
    mean = x.mean(axis=0)
    length = np.linalg.norm(mean)
    direction = mean / length if length > 0 else mean
    along = x @ direction
    across = np.sqrt(np.maximum(np.einsum("nd,nd->n", x, x) - along**2, 0))
    V = np.asarray(evaluated(found, jnp.asarray(a)), float)
    size = np.einsum("njr,njr->n", V, V)
    V, count = V / np.sqrt(np.where(size > 0, size, 1))[:, None, None], found.degree + 1
    vectors, masses, roots = [], [], []
    for i in range(count):
        j = np.arange(count)
        root = np.sqrt(scipy.special.binom(j, i))
        features = V * (root * along[:, None] ** np.maximum(j - i, 0))[:, :, None] * across[:, None, None] ** i
        flat = features.reshape(len(V), -1)
        components = np.linalg.svd(flat, full_matrices=False)[2].T
        components *= np.where((flat @ components).sum(axis=0) < 0, -1, 1)  # a component has no sign of its own
        vectors.append(components)
        masses.append(np.square(flat @ components).max(axis=0))
        roots.append(root)
    flat_masses = np.concatenate(masses)
    order = np.argsort(flat_masses)
    small = np.zeros(len(order), bool)
    small[order] = np.cumsum(flat_masses[order]) <= tol
    keep = np.split(~small, np.cumsum([len(m) for m in masses])[:-1])
    for mass, kept in zip(masses, keep, strict=True):
        kept[np.argsort(-np.where(kept, mass, 0))[most:]] = False
    basis = np.zeros((count, V.shape[1] * V.shape[2], max(1, max(k.sum() for k in keep))))
    for i in range(count):
        chosen = vectors[i][:, keep[i]]
        basis[i, :, : chosen.shape[1]] = chosen
    basis = basis.reshape(count, *V.shape[1:], -1) * np.array(roots)[:, :, None, None]
    return Centre(direction, basis), float(sum(mass[~kept].sum() for mass, kept in zip(masses, keep, strict=True)))


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
    """Factors of the largest number up to `count` that has two of similar size; 1 and `count` where it is small. Where
    it is large they are multiples of 4, which saves a tenth of the time of the products with them."""
    unit = 4 if count >= 1024 else 1
    for size in range(count // unit**2, 63 // unit**2, -1):
        first = next(m for m in range(math.isqrt(size), 0, -1) if size % m == 0)
        if 4 * first >= size // first:
            return unit * first, unit * (size // first)
    return 1, count


def _draw_horner(rng, d: int, columns: int, degree: int, components) -> dict[str, Any]:
    leaves = np.stack([_sign_rows(rng, d, columns) for _ in range(degree)])
    first, second = map(_hartley, _factors(columns))
    return {"leaves": leaves, "signs": _signs(rng, degree, columns), "first": first, "second": second}


def _apply_horner(psi: FeatureMap, V: Array, x: Array, powers: list[Array] | None) -> Array:
    """psi_j = V_j e + T_j(psi_(j+1), x), T(u, x) = (H S u) o (U x), S random signs, H orthogonal, U rows of signs.

    E[T(u, x).T(v, y)] = (u.v)(x.y), so that psi_0 has the whole series. Flat u make the variance small: e is spread
    over all coordinates, and H = H_1 (x) H_2, two matrix products, keeps the sum so."""
    dtype, rank, projections = x.dtype, V.shape[2], psi.projections
    first, second = (jnp.asarray(projections[name], dtype) for name in ("first", "second"))
    m, k = len(first), len(second)
    across, down = np.divmod(np.arange(rank) % (m * k), k)  # ranks beyond are of exact degrees, and zero here
    spread = first[across][:, :, None] * second[down][:, None, :]

    def step(sketch: Array, at) -> tuple[Array, None]:
        coefficients, signs, leaf, power = at
        power = x @ leaf.astype(dtype) if power is None else power
        sketch = (sketch + jnp.einsum("nr,rij->nij", coefficients, spread)) * signs.astype(dtype).reshape(1, m, k)
        mixed = (sketch @ second).swapaxes(1, 2) @ first  # the order of coordinates is of no matter
        return (mixed.reshape(len(x), -1) * power).reshape(-1, m, k), None

    coefficients = V.transpose(1, 0, 2)[:0:-1]
    products = None if powers is None else jnp.stack(powers)
    start = jnp.zeros((len(x), m, k), dtype)
    sketch, _ = jax.lax.scan(step, start, (coefficients, projections["signs"], projections["leaves"], products))
    return (sketch + jnp.einsum("nr,rij->nij", V[:, 0], spread)).reshape(len(x), -1)


# ---- degree by degree -----------------------------------------------------------------------------------------------


def _allocated(columns: int, masses: np.ndarray, unit: int = 1) -> np.ndarray:
    """Columns for each component (j, r), in multiples of `unit`: in proportion to its mass, and one unit at least.

    The variance of a component off the diagonal is about mass^2/columns at every degree; in proportion to the mass
    their sum is least. Where there are more components than units the smallest get none."""
    units, counts = columns // unit, np.zeros(masses.size, int)
    kept = np.argsort(-masses, axis=None)[:units]
    kept = kept[masses.ravel()[kept] > 0]
    share = masses.ravel()[kept] / masses.ravel()[kept].sum()
    counts[kept] = 1 + np.floor((units - len(kept)) * share)
    counts[kept[0]] += units - counts.sum()
    return unit * counts.reshape(masses.shape)


def _draw_maclaurin(rng, d: int, columns: int, degree: int, components) -> dict[str, Any]:
    degrees = np.repeat([j for j, _, _ in components], [count // 2 for _, _, count in components])
    leaves = []
    for step in range(degrees.max()):
        count = int((degrees > step).sum())
        rows, turned = _sign_rows(rng, d, count), _signs(rng, d, count) > 0
        leaves.append(np.concatenate([rows * turned, rows * ~turned], axis=1))
    return {"leaves": leaves}


def _apply_maclaurin(psi: FeatureMap, V: Array, x: Array, powers: list[Array] | None) -> Array:
    """Products of j projections w.x on complex signs w in {1, -1, i, -i}^d, whose real and imaginary parts are columns.

    E[prod(w.x) conj prod(w.y)] = (x.y)^j, with less variance than real signs have at the same number of columns."""
    halves = [count // 2 for _, _, count in psi.components]
    blocks = [
        jnp.repeat(V[:, j, r, None], n, axis=1) / math.sqrt(n)
        for (j, r, _), n in zip(psi.components, halves, strict=True)
    ]
    real = jnp.concatenate(blocks, axis=1)
    imaginary = jnp.zeros_like(real)
    for step, leaf in enumerate(psi.projections["leaves"]):
        power = x @ leaf.astype(x.dtype) if powers is None else powers[step]
        count = power.shape[1] // 2
        a, b, c, d = real[:, :count], imaginary[:, :count], power[:, :count], power[:, count:]
        real = jnp.concatenate([a * c - b * d, real[:, count:]], axis=1)
        imaginary = jnp.concatenate([a * d + b * c, imaginary[:, count:]], axis=1)
    return jnp.concatenate([real, imaginary], axis=1)


# ---- the paper's PolySketch, for comparison -------------------------------------------------------------------------


@pytree(leaves=("index", "sign"), static=("size",))
@dataclass(frozen=True, eq=False)
class CountSketch:
    """Every coordinate of x with a random sign into one of `size` sums: in time proportional to the non-zeros of x."""

    index: np.ndarray
    sign: np.ndarray
    size: int

    def __call__(self, x: Array) -> Array:
        signed = x.T * self.sign.astype(x.dtype)[:, None]
        return jnp.zeros((self.size, len(x)), x.dtype).at[self.index].add(signed).T

    def of_sparse(self, x: scipy.sparse.csr_array) -> np.ndarray:
        index, sign = np.asarray(self.index), np.asarray(self.sign)
        data = x.data * sign[x.indices].astype(x.dtype)
        return scipy.sparse.csr_array((data, index[x.indices], x.indptr), (x.shape[0], self.size)).toarray()


def _count_sketch(rng, d: int, size: int) -> CountSketch:
    return CountSketch(rng.integers(0, size, d), _signs(rng, d), size)


def _sparse_product(x: scipy.sparse.csr_array, leaf) -> np.ndarray:
    return leaf.of_sparse(x) if isinstance(leaf, CountSketch) else x @ np.asarray(leaf)


def _draw_tensor_sketch(rng, d: int, columns: int, degree: int, components) -> dict[str, Any]:
    return {"leaves": [_count_sketch(rng, d, count) for j, _, count in components for _ in range(j)]}


def _apply_tensor_sketch(psi: FeatureMap, V: Array, x: Array, powers: list[Array] | None) -> Array:
    """Pham and Pagh 2013: the convolution of j CountSketches of x is a CountSketch of its j-th tensor power."""
    hashed = iter([leaf(x) for leaf in psi.projections["leaves"]] if powers is None else powers)
    blocks = []
    for j, r, count in psi.components:
        waves = math.prod(jnp.fft.rfft(next(hashed)) for _ in range(j))
        blocks.append(V[:, j, r, None] * jnp.fft.irfft(waves, count).astype(x.dtype))
    return jnp.concatenate(blocks, axis=1)


def _draw_tree(rng, d: int, columns: int, degree: int, components) -> dict[str, Any]:
    leaves, size = 1 << (degree - 1).bit_length(), 1 << (columns.bit_length() - 1)
    most = max(size, *(count for _, _, count in components))
    return {
        "leaves": [_count_sketch(rng, d, size) for _ in range(leaves)],
        "signs": _signs(rng, leaves, 2, size),
        "rows": rng.integers(0, size, (leaves, 2, most)),
        "factors": [hadamard(1 << k, dtype=np.int8) for b in [size.bit_length() - 1] for k in (b // 2, b - b // 2)],
    }


def _apply_tree(psi: FeatureMap, V: Array, x: Array, powers: list[Array] | None) -> Array:
    """Ahle et al. 2020: a binary tree over CountSketches of x, nodes (1/sqrt m) (H D_1 u)[P_1] o (H D_2 v)[P_2].

    One tree serves all degrees j: the leaves beyond the j-th are e_1. Nodes are numbered from the root, 1, and the
    children of i are 2 i and 2 i + 1; `below(i, used)` is node i with so many leaves of x."""
    projections, dtype = psi.projections, x.dtype
    hashed = [leaf(x) for leaf in projections["leaves"]] if powers is None else powers
    first, second = (factor.astype(dtype) for factor in projections["factors"])
    size, known = len(first) * len(second), {}
    unused = jnp.zeros((1, size), dtype).at[0, 0].set(1.0)

    def mixed(u: Array, i: int, side: int, count: int) -> Array:
        u = (u * projections["signs"][i, side].astype(dtype)[None]).reshape(-1, len(first), len(second))
        return ((u @ second).swapaxes(1, 2) @ first).reshape(len(u), -1)[:, projections["rows"][i, side, :count]]

    def node(i: int, used: int, leaves: int, count: int) -> Array:
        u, v = (
            below(2 * i, min(used, leaves // 2), leaves // 2),
            below(2 * i + 1, max(used - leaves // 2, 0), leaves // 2),
        )
        return mixed(u, i, 0, count) * mixed(v, i, 1, count) / math.sqrt(count)

    def below(i: int, used: int, leaves: int) -> Array:
        if leaves == 1:
            return hashed[i - len(hashed)] if used else unused
        if (i, used) not in known:
            known[i, used] = node(i, used, leaves, size)
        return known[i, used]

    return jnp.concatenate([V[:, j, r, None] * node(1, j, len(hashed), n) for j, r, n in psi.components], axis=1)


class Method(NamedTuple):
    """How the degrees beyond the exact ones are sketched.

    draw    (rng, d, columns, degree, components) -> projections: `leaves`, which take rows, and whatever else
    apply   (map, V, x, powers) -> (n, columns), where powers are the products of x with the leaves if they are known
    unit    columns are allotted to degrees in multiples of this; None where one sketch serves all degrees
    """

    draw: Callable
    apply: Callable
    unit: int | None


METHODS: Mapping[str, Method] = {
    "horner": Method(_draw_horner, _apply_horner, None),
    "centred": Method(_draw_horner, _apply_horner, None),
    "maclaurin": Method(_draw_maclaurin, _apply_maclaurin, 2),
    "tensorsketch": Method(_draw_tensor_sketch, _apply_tensor_sketch, 1),
    "polysketch": Method(_draw_tree, _apply_tree, 1),
}


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
                   "maclaurin": complex random Maclaurin features, columns allotted to degrees; cheaper
                   "tensorsketch", "polysketch": CountSketch with Fourier transforms, and the paper's tree
                   "centred": Horner around the mean direction of X: for data whose rows are alike
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
    centre, loss = _centre(found, *_unit(X), tol / 10, n_components) if method == "centred" else (None, 0.0)
    ranks, d = found.ranks if centre is None else centre.ranks, X.shape[1]
    draw, _, unit = METHODS[method]
    lowest = (int(ranks[0]), *(int(rank) * d for rank in ranks[1:2]))

    def least(k: int) -> int:
        """The columns that it takes if k degrees are exact, and a sketch has the others."""
        rest = int(ranks[k:].max(initial=0))
        return sum(lowest[:k]) + (max(rest, unit or 1) if rest else 0)

    exact: tuple[int, ...] = next((lowest[:k] for k in (2, 1) if least(k) <= n_components), ())
    left, columns = n_components - sum(exact), 0
    components: tuple[tuple[int, int, int], ...] = ()
    if needed := int(ranks[len(exact) :].max(initial=0)):
        if left < max(needed, unit or 1):
            raise ValueError(
                f"n_components={n_components} came; at least {least(0)} are needed, for the rank of the coefficients "
                "of this network on rows of these norms"
            )
        columns = math.prod(_factors(left))
        if unit is not None:
            masses = _masses(found, len(exact))
            counts = _allocated(left, masses, unit)
            components = tuple((int(j), int(r), int(counts[j, r])) for j, r in np.argwhere(counts > 0)[::-1])
            columns, loss = int(counts.sum()), float(masses[counts == 0].sum())
    if not sum(exact) + columns:
        raise ValueError(f"the {get} of {net!r} is zero on rows of these norms; there is nothing to approximate")
    projections: dict[str, Any] = {"leaves": []}
    if columns:
        projections = draw(np.random.default_rng(random_state), d, columns, found.degree, components)
    if scipy.sparse.issparse(X):  # SciPy multiplies floats
        projections["leaves"] = _as_float(projections["leaves"], X.dtype)
    projections = jax.tree.map(jnp.asarray, projections)
    return FeatureMap(found, centre, projections, method, d, exact, columns, components, loss, normalize)


def _as_float(leaves, dtype):
    if isinstance(leaves, list):
        return [_as_float(leaf, dtype) for leaf in leaves]
    return leaves if isinstance(leaves, CountSketch) else leaves.astype(dtype)


def _masses(found: Series, first: int) -> np.ndarray:
    """Largest share of K(x, x) of each component (j, r), (p + 1, r); 0 below degree `first`."""
    low, high = found.norms
    a = np.geomspace(low, high, 33) if found.power == 0 and low > 0 else np.ones(1)
    squares = np.square(np.asarray(evaluated(found, jnp.asarray(a)), float))
    total = squares.sum(axis=(1, 2), keepdims=True)
    shares = (squares / np.where(total > 0, total, 1)).max(axis=0)
    return np.where(np.arange(len(shares))[:, None] >= first, shares, 0.0)


def _rows(X):
    """Finite floats (n, d): a JAX array, or a csr_array."""
    if not scipy.sparse.issparse(X):
        X = _points(X, "X")
        if X.ndim != 2:
            raise ValueError(f"X has shape {X.shape}; rows (n, d) were expected: for images take method='layerwise'")
        return X
    X = scipy.sparse.csr_array(X)
    X = X.astype(np.float32 if X.dtype == np.float32 else jnp.zeros(()).dtype)
    if X.shape[0] == 0 or X.shape[1] == 0 or not np.isfinite(X.data).all():
        raise ValueError(f"sparse X of shape {X.shape} came; finite rows (n, d) were expected, at least one")
    return X


def _norms(X) -> np.ndarray:
    """|x|/sqrt(d), (n,), in the precision of the rows. ValueError where its square is out of their range."""
    sparse = scipy.sparse.issparse(X)
    squares = np.asarray((X * X).sum(axis=1) if sparse else jnp.einsum("nd,nd->n", X, X, precision="highest"))
    lost = ~np.isfinite(squares)
    if (small := squares < np.finfo(squares.dtype).tiny).any():
        largest = abs(X).max(axis=1)
        lost |= small & (np.asarray(largest.toarray() if sparse else largest).ravel() > 0)
    if lost.any():
        row = int(np.argmax(lost))
        raise ValueError(f"row {row} of X: |x|^2 overflows or underflows {squares.dtype}; scale X, or give float64")
    return np.sqrt(squares / X.shape[1])


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
