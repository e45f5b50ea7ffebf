"""The kernel of a fully connected network as a power series in the cosine, of any depth: what sketches are made from.

`K(a, b, c) = sum_j V_j(a).V_j(b) c^j` for the NNGP or the NTK of rows with norms a and b (sqrt(q) at the input) and
cosine c. The whole network is evaluated at complex cosines on a circle, every activation by its Hermite series (a bare
kernel by its formula), and one Fourier transform gives all coefficients: for a homogeneous network the paper's
Algorithm 1, in general a matrix G_j(a, b) on a Chebyshev grid of norms, whose factor V_j is interpolated. `sketch.py`
is the caller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.polynomial.chebyshev import chebvander

from .layers import Activation, Dropout, Formula, Layer, Place, State, is_zero, pytree
from .networks import Network, _diagonal, _double, _ended

TOL, DEGREE, MOST = 1e-3, 64, 512
"""Where nothing else is asked: the error, and the largest degree; and the largest degree that may be asked."""

GRID = (12, 24, 48)  # norms
HERMITE = (64, 128, 256, 512, 1024)  # degrees of an activation's own series
ROUNDING = 1e-15
NEGATIVE = 1e-9
"""A coefficient with an eigenvalue below minus this, over the kernel's scale, is no rounding."""

ONE_NORM = 1e-4
"""Norms within 1 + ONE_NORM of each other are taken as one."""


# ---- the result -----------------------------------------------------------------------------------------------------


@pytree(leaves=("table", "at_zero", "norms", "truncation", "residual"), static=("power",))
@dataclass(frozen=True, eq=False)
class Series:
    """K(a, b, c) = sum_j V_j(a).V_j(b) c^j, j = 0..p, V_j(a) in R^r.

    table        (p + 1, r, N): Chebyshev coefficients of V_j(a)/a^power in log a over `norms`
    at_zero      (p + 1, r): V_j(0); NaN where the network has no value at a zero row
    power        the degree of a homogeneous network (then N = 1 and all norms are served), else 0
    norms        (least, greatest) norm |x|/sqrt(d)
    truncation   mass of the degrees that are left out: exact diagonal minus the series at c = 1, over the diagonal. It
                 bounds the error over sqrt(K(x, x) K(y, y)) at every c, as all coefficients are positive semi-definite
    residual     largest sum over j of |G_j - V_j.V_j|, over the same scale, between the nodes: interpolation and rank
    """

    table: np.ndarray
    at_zero: np.ndarray
    power: int
    norms: tuple[float, float]
    truncation: float
    residual: float

    @property
    def degree(self) -> int:
        return len(self.table) - 1

    @property
    def error(self) -> float:
        """Bounds |error| over sqrt(K(x, x) K(y, y)): truncation, and what interpolation and rank add (measured)."""
        return self.truncation + self.residual

    @property
    def ranks(self) -> np.ndarray:
        """Of every V_j, (p + 1,); 0 where a degree does not occur (half of them, of odd and of even kernels)."""
        used = (np.asarray(self.table) != 0).any(axis=2) | (np.nan_to_num(np.asarray(self.at_zero)) != 0)
        return np.max(np.where(used, np.arange(1, used.shape[1] + 1), 0), axis=1)

    def __call__(self, a: Array) -> Array:
        """V at norms (n,), as (n, p + 1, r) in their precision; extrapolated outside the range."""
        table, at_zero = (jnp.asarray(x, a.dtype) for x in (self.table, self.at_zero))
        safe = jnp.where(a == 0, 1.0, a)
        if table.shape[2] == 1:
            V = jnp.broadcast_to(table[None, :, :, 0], (len(a), *table.shape[:2]))
        else:
            y = jnp.clip(_coordinate(self.norms, safe), -1.0, 1.0)
            waves = jnp.cos(jnp.arange(table.shape[2], dtype=a.dtype)[None, :] * jnp.arccos(y)[:, None])
            V = jnp.einsum("nk,jrk->njr", waves, table, precision="highest")
        V = V * jnp.power(safe, self.power)[:, None, None] if self.power else V
        return jnp.where(a[:, None, None] == 0, at_zero[None], V)

    def kernel(self, a, b, c) -> np.ndarray:
        """The truncated series at norms and cosines (n,)."""
        left, right = (np.asarray(evaluated(self, jnp.asarray(x, float)), float) for x in (a, b))
        powers = np.asarray(c, float)[:, None] ** np.arange(self.degree + 1)
        return np.einsum("njr,njr,nj->n", left, right, powers)


@jax.jit
def evaluated(found: Series, a: Array) -> Array:
    """V at norms: compiled once for all series of these shapes, and in one piece."""
    return found(a)


def _coordinate(norms: tuple[Any, Any], a):
    """log a over the range, from -1 to 1."""
    low, high = (jnp.log(norm) for norm in norms)
    return (2 * jnp.log(a) - (low + high)) / (high - low)


def _at(norms: tuple[float, float], y: np.ndarray) -> np.ndarray:
    low, high = np.log(norms)
    return np.exp((low + high) / 2 + (high - low) / 2 * y)


# ---- the network at complex cosines ---------------------------------------------------------------------------------


@pytree(leaves=("chat", "arguments"), static=("formula",))
@dataclass(frozen=True)
class Powers(Layer):
    """An activation at complex covariances |q12| < sqrt(q11 q22).

    chat   (n, m + 1) its Hermite coefficients at the norms of the n rows; None for a bare kernel, which has a formula
    """

    chat: Any
    arguments: dict[str, Array]
    formula: Formula

    def act(self, state: State, q11: Array, q22: Array) -> State:
        zero = (q11 == 0) | (q22 == 0)
        q11, q22 = (jnp.where(q == 0, 1.0, q) for q in (q11, q22))
        if self.chat is None:
            k, kdot = (f(state.q, q11, q22, **self.arguments) for f in self.formula.fns.complex_kernel())
            real = self.formula.fns.k(jnp.zeros(()), *(jnp.where(zero, 0.0, q) for q in (q11, q22)), **self.arguments)
            k, kdot = jnp.where(zero, real, k), jnp.where(zero, 0.0, kdot)
        else:
            k, kdot = self._sums(state.q / jnp.sqrt(q11 * q22))
            kdot = kdot / jnp.sqrt(q11 * q22)
        none = state.theta is None or is_zero(state.theta)
        return State(k, state.theta if none else state.theta * kdot, state.pixels)

    def _sums(self, rho: Array) -> tuple[Array, Array]:
        """sum_m chat_m chat_m' rho^m and its derivative, by Horner."""

        def step(sums, chat):
            total, slope = sums
            return (total * rho + chat[:, None] * chat[None, :], slope * rho + total), None

        zero = jnp.zeros_like(rho)
        (total, slope), _ = jax.lax.scan(step, (zero, zero), self.chat.T[::-1])
        return total, slope


@jax.jit
def _on_circle(net: Network, trace, a: Array, c: Array, theta) -> Array:
    """The kernel of all pairs of norms at complex cosines: (len(c), n, n); the NTK where theta is 0, not None."""

    def at(c: Array) -> Array:
        start = State(a[:, None] * a[None, :] * c, None if theta is None else 0.0)
        end = _ended(net.pairs(start, trace, trace, after=False))
        return end.q if theta is None else end.theta

    return jax.vmap(at)(c)


def _is_activation(x) -> bool:
    return isinstance(x, Activation)


def _powers(net: Network, trace, radius: float) -> Network:
    """The network with its activations ready for complex cosines of this modulus."""
    layers = [(layer, part.q) for _, layer, part in net.leaves(trace, "") if _is_activation(layer)]
    tables = iter(_hermite([(layer, np.sqrt(np.asarray(q))) for layer, q in layers], radius))

    def ready(leaf):
        return Powers(next(tables), leaf.arguments, leaf.formula) if _is_activation(leaf) else leaf

    return jax.tree.map(ready, net, is_leaf=_is_activation)


def _hermite(layers: list[tuple[Activation, np.ndarray]], radius: float) -> list[np.ndarray | None]:
    """Coefficients of all activations to the first of the degrees HERMITE at which none matters any more.

    A cosine of modulus `radius` stays below (1 + radius)/2 in nets without large biases; what is lost beyond, and at
    the last of the degrees, is in the truncation error."""
    rho = (1 + radius) / 2
    tables: list[np.ndarray | None] = []
    for degree in HERMITE:
        tables = [
            layer.fns.hermite(degree, np.maximum(norms, 1e-30), **{n: float(v) for n, v in layer.arguments.items()})
            if layer.fns.dual.activation is not None
            else None
            for layer, norms in layers
        ]
        weights = np.arange(1, degree + 2) * rho ** np.arange(degree + 1)
        sizes = [np.square(chat) * weights for chat in tables if chat is not None]
        if all((x[:, -8:].max(axis=1) <= ROUNDING * x.max(axis=1)).all() for x in sizes):
            break
    return tables


# ---- the series -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """Coefficients at n norms a: G (p + 1, n, n), and the exact kernel K(a, a) (n,), NaN where there is none."""

    a: np.ndarray
    G: np.ndarray
    exact: np.ndarray

    @property
    def scale(self) -> np.ndarray:
        return np.sqrt(np.where(self.exact > 0, self.exact, 1.0))

    def missing(self) -> np.ndarray:
        """1 - sum_{j <= p} G_j(a, a)/K(a, a) for p = 0, 1, .., at the worst norm."""
        sums = np.cumsum(np.einsum("jnn->jn", self.G), axis=0)
        return ((self.exact - sums) / self.scale**2).max(axis=1)

    def finite(self) -> Samples:
        keep = np.isfinite(self.exact)
        return Samples(self.a[keep], self.G[:, keep][:, :, keep], self.exact[keep])


def series(
    net: Network, norms: tuple[float, float], get: str = "ntk", *, tol: float = TOL, degree: int | None = None
) -> Series:
    """The power series of the kernel of `net` for rows of norms |x|/sqrt(d) in `norms` (of a homogeneous network: all).

    get      "nngp" or "ntk"
    tol      the mass that may be left out, over sqrt(K(x, x) K(y, y)); a fifth of it again for interpolation and rank.
             Series of kinked activations converge slowly (the NTK of relu as degree^-1/2): they end at degree 64, and
             `error` says with what error
    degree   the degree itself, up to 512, in place of tol
    ValueError where the network is none of vectors, or a coefficient is not positive semi-definite (a bare kernel that
    is no kernel in all dimensions); NoClosedForm for the NTK of an activation that jumps.
    """
    norms = _checked(net, norms, get, tol, degree)
    net = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), net)
    power, most = net.homogeneity(1), DEGREE if degree is None else degree
    sizes = (1,) if power is not None or norms[1] <= norms[0] * (1 + ONE_NORM) else GRID
    within = norms if power is None else (1.0, 1.0)
    for n in sizes:
        at_nodes = _sample(net, get, np.append(0.0, _at(within, _nodes(n))), most).finite()
        between = _sample(net, get, _at(within, np.cos(np.pi * np.linspace(0, 1, n + 1))), most)
        missing = between.missing()
        enough = missing <= tol
        p = int(np.argmax(enough)) if degree is None and enough[-1] else most
        table, at_zero = _factors(at_nodes, p, n, tol / 10)
        at_zero = 0 * at_zero if power else at_zero
        where = (0.0, math.inf) if power is not None else norms
        found = Series(table, at_zero, power or 0, where, max(float(missing[p]), 0.0), 0.0)
        found = replace(found, residual=_residual(found, between))
        if found.residual <= tol / 5:
            break
    return found


def _sample(net: Network, get: str, a: np.ndarray, degree: int) -> Samples:
    """The coefficients of c^0..c^degree, from equidistant points on a circle of radius r < 1.

    Of n points, coefficient j + n adds r^n times itself to coefficient j; rounding grows to r^-degree eps."""
    points = 4 * (degree + 1)
    radius = ROUNDING ** (1 / points)
    c = radius * np.exp(-2j * np.pi * np.arange(points // 2 + 1) / points)
    theta = 0.0 if get == "ntk" else None
    with _double(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        trace, end = _diagonal(net, jnp.asarray(a)[:, None], get == "ntk")
        values = _on_circle(_powers(net, trace, radius), trace, jnp.asarray(a), jnp.asarray(c), theta)
        exact = np.asarray(end.q if theta is None else end.theta)
    G = np.fft.irfft(np.asarray(values), points, axis=0)[: degree + 1]
    G /= radius ** np.arange(degree + 1)[:, None, None]
    return Samples(a, (G + G.transpose(0, 2, 1)) / 2, exact)


def _factors(samples: Samples, degree: int, count: int, tol: float) -> tuple[np.ndarray, np.ndarray]:
    """The table of V_j (p + 1, r, N) from the last `count` norms, Chebyshev nodes, and V_j(0) from the one before."""
    values, vectors = np.linalg.eigh(samples.G / (samples.scale[:, None] * samples.scale[None, :]))
    if values.min() < -NEGATIVE:
        j = int(np.argmin(values.min(axis=1)))
        raise ValueError(
            f"the coefficient of c^{j} has the eigenvalue {values[j].min():.3g} (over the kernel's scale): the kernel "
            "is not positive semi-definite, and has no features. A kernel was expected whose power series in the "
            "cosine has no negative coefficient"
        )
    V = (vectors * np.sqrt(np.maximum(values, 0))[:, None, :])[: degree + 1, :, ::-1]
    masses = np.square(V).max(axis=1)
    order = np.argsort(masses, axis=None)
    small = np.zeros(masses.size, bool)
    small[order] = np.cumsum(masses.ravel()[order]) <= tol
    V = np.where(small.reshape(masses.shape)[:, None, :], 0.0, V) * samples.scale[None, :, None]
    V = V[:, :, : max(1, int((V != 0).any(axis=(0, 1)).sum()))]
    at_zero = V[:, 0] if len(samples.a) > count else np.full((len(V), V.shape[2]), np.nan)
    table = np.linalg.solve(chebvander(_nodes(count), count - 1), V[:, -count:])
    return table.transpose(0, 2, 1), at_zero


def _residual(found: Series, check: Samples) -> float:
    with _double():
        V = np.asarray(evaluated(found, jnp.asarray(check.a)))
    missed = check.G[: found.degree + 1] - np.einsum("njr,mjr->jnm", V, V)
    return float((np.abs(missed).sum(axis=0) / (check.scale[:, None] * check.scale[None, :])).max())


def _nodes(n: int) -> np.ndarray:
    return np.cos(np.pi * (2 * np.arange(n) + 1) / (2 * n))


def _checked(net: Network, norms, get, tol, degree) -> tuple[float, float]:
    if get not in ("nngp", "ntk"):
        raise ValueError(f"get={get!r} came; 'nngp' or 'ntk' was expected: features are of one kernel")
    if not isinstance(net, Network):
        raise ValueError(f"{net!r} ({type(net).__name__}) came; a network was expected, such as serial(Dense(), ...)")
    net.follow(Place(()))
    if any(isinstance(layer, Dropout) for layer in _layers(net)):
        raise ValueError("the network has Dropout, which is no power series (k(x, x) jumps); leave the layer out")
    if degree is not None and not (isinstance(degree, int | np.integer) and 0 <= degree <= MOST):
        raise ValueError(f"degree={degree!r} came; an integer from 0 to {MOST} was expected")
    if not (isinstance(tol, int | float) and 0 < tol < 1):
        raise ValueError(f"tol={tol!r} came; a number between 0 and 1 was expected, such as {TOL}")
    low, high = map(float, norms)
    if not 0 < low <= high < math.inf:
        raise ValueError(f"norms={norms!r} came; (least, greatest) was expected, two positive numbers")
    return low, high


def _layers(net) -> list[Layer]:
    """All layers without layers in them, also branches."""
    inner = jax.tree.leaves(net, is_leaf=lambda x: isinstance(x, Dropout))
    return [x for x in inner if isinstance(x, Layer)]
