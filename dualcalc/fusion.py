"""Depth fusion: the kernels of a whole network as one polynomial in the angle between two rows (docs/networks.md).

Of inputs of variances q11 and q22 at the cosine c, every kernel of a network of vectors, whatever its depth, is a
function of (q11, q22, c), analytic in y = 2 asin(c)/pi on the whole of [-1, 1], kinks of the activation included:

    K = sum_j T_j(y) sum_r s_jr F_jr(q11) F_jr(q22),    s_jr = 1 or -1,

T_j Chebyshev polynomials, F_jr polynomials in log q. Where the norms of the rows do not matter (a homogeneous network,
or rows of one norm) the inner sum is a number. It costs the same at depth 3 and at depth 100. What the functions are,
this file does not know; where they are not smooth in the norms (a kink behind a bias) it finds no polynomial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.polynomial import chebyshev

from .runtime import angle

DEGREES = 16, 32, 64, 96
"""In y: the kernels are sampled at one point more, and what the tolerance does not need is dropped."""

NODES = 9, 17
"""Variances at which the kernels are sampled, geometric Chebyshev points of their range."""

SHARES = 1 / 2, 1 / 8, 1 / 32, 1 / 128
"""Of the tolerance: what may be dropped of a term, tried in turn until the error that is measured is small enough."""


@dataclass(frozen=True)
class Fused:
    """Polynomials for kernels as functions of (q11, q22, c).

    degree   of all of them in y
    terms    products per pair, of all kernels, where norms matter; else 0
    error    the largest on some thousand points, over sqrt(K(x, x) K(y, y)), rounding in the given precision included
    range    of the variances; (q, q) where they do not matter
    ranks    per kernel and degree the number of terms, where norms matter
    parts    per kernel: the coefficients (degree + 1,), or (F, signs): F (terms, nodes) in x, lowest first
    """

    degree: int
    terms: int
    error: float
    range: tuple[float, float]
    ranks: tuple[tuple[int, ...], ...] | None
    parts: tuple

    def factors(self, q: np.ndarray) -> tuple[np.ndarray, ...]:
        """F at the variances (n,) of rows: (n, terms) per kernel, in float64. Nothing where norms do not matter."""
        if self.ranks is None:
            return ()
        low, high = np.log(self.range)
        x = np.clip((2 * np.log(q) - low - high) / (high - low), -1, 1)
        return tuple(chebyshev.chebvander(x, F.shape[1] - 1) @ F.T for F, _ in self.parts)

    def signs(self) -> tuple[np.ndarray, ...]:
        """Per kernel the coefficients, or the signs s of the terms: what `series` takes."""
        return tuple(part if self.ranks is None else part[1] for part in self.parts)


def fuse(
    kernels: Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]], low: float, high: float, dtype, tol: float
) -> Fused | None:
    """Polynomials with an error of at most `tol` for variances from `low` to `high`; None where none has it.

    kernels   of variances (p,) and cosines (n,), in float64: arrays (p, p, n) for all pairs of variances
    """
    fine = np.cos(np.linspace(0, np.pi, 150)).astype(dtype).astype(float)
    between = np.exp(np.linspace(np.log(low), np.log(high), 1 if low == high else 6))
    truth = kernels(between, np.sin(np.pi / 2 * fine))
    for nodes in (1,) if low == high else NODES:
        x = _points(nodes)
        q = np.exp((np.log(low) + np.log(high) + x * (np.log(high) - np.log(low))) / 2)
        scales = [np.sqrt(k[range(nodes), range(nodes), 0]) for k in kernels(q, np.ones(1))]
        if not all((scale > 0).all() for scale in scales):
            return None
        for degree in DEGREES:
            y = _points(degree + 1)
            values = kernels(q, np.sin(np.pi / 2 * y))
            with np.errstate(invalid="ignore", divide="ignore"):
                series = [
                    chebyshev.chebfit(y, (k / (s[:, None] * s)[..., None]).reshape(-1, degree + 1).T, degree)
                    for k, s in zip(values, scales, strict=True)
                ]
            if not all(np.abs(s[-2:]).max() <= tol for s in series):  # NaN included
                continue
            for share in SHARES:
                found = _compressed(series, scales, x, (low, high), share * tol)
                error = _error(found, between, fine, truth, dtype)
                if error <= tol:
                    return replace(found, error=error)
                if error > 16 * tol:
                    break
            break
        else:
            return None
    return None


def angle_of(c: Array) -> Array:
    """y = 2 asin(c)/pi of cosines in [-1, 1]."""
    return (2 / np.pi) * angle(c, jnp.sqrt((1 - c) * (1 + c)))


def series(terms: Sequence[Any], y: Any) -> Any:
    """sum_j terms_j T_j(y), by Clenshaw's recurrence, of NumPy or JAX arrays; None is zero."""
    first = second = 0 * y
    for term in terms[:0:-1]:
        next_ = 2 * y * first - second
        first, second = next_ if term is None else next_ + term, first
    last = y * first - second
    return last if terms[0] is None else last + terms[0]


def terms(ranks: Sequence[int] | None, signs: Any, rows: Any, columns: Any, product: Callable = np.matmul) -> list[Any]:
    """The inner sums for pairs, (n, m) each or numbers: from `Fused.signs` and the factors (n, terms), (m, terms)."""
    if ranks is None:
        return list(signs)
    ends = np.cumsum((0, *ranks))
    signed = rows * signs[None, :]
    return [
        product(signed[:, start:end], columns[:, start:end].T) if end > start else None
        for start, end in zip(ends[:-1], ends[1:], strict=True)
    ]


def _points(count: int) -> np.ndarray:
    """Chebyshev points of [-1, 1]."""
    return np.cos(np.pi * (2 * np.arange(count) + 1) / (2 * count))


def _compressed(series, scales, x: np.ndarray, limits, drop: float) -> Fused:
    """The terms above `drop`, of coefficients (degree + 1, nodes^2) of the kernels over their scales (nodes,)."""
    nodes = len(x)
    if nodes == 1:
        sizes = [np.abs(s[:, 0]) for s in series]
        degree = max(int(np.flatnonzero(size > drop).max(initial=0)) for size in sizes)
        parts = tuple(s[: degree + 1, 0] * scale**2 for s, scale in zip(series, scales, strict=True))
        return Fused(degree, 0, 0.0, limits, None, parts)
    all_ranks, factors = [], []
    for s, scale in zip(series, scales, strict=True):
        w, v = np.linalg.eigh((m := s.reshape(-1, nodes, nodes)) / 2 + m.transpose(0, 2, 1) / 2)
        kept = np.abs(w) * np.square(v).max(axis=1) > drop
        all_ranks.append(kept.sum(axis=1))
        values = (v * np.sqrt(np.abs(w))[:, None, :]).transpose(0, 2, 1)[kept] * scale
        factors.append((chebyshev.chebfit(x, values.T, nodes - 1).T, np.sign(w[kept])))
    degree = max(int(np.flatnonzero(ranks).max(initial=0)) for ranks in all_ranks)
    ranks = tuple(tuple(int(r) for r in ranks[: degree + 1]) for ranks in all_ranks)
    return Fused(degree, sum(map(sum, ranks)), 0.0, limits, ranks, tuple(factors))


def _error(found: Fused, q: np.ndarray, y: np.ndarray, truth, dtype) -> float:
    """The largest error at these variances and these y, of which 1 comes first, in this precision."""
    factors = found.factors(q) or (np.ones((len(q), 1)),) * len(truth)
    worst = 0.0
    for k, (true, signs, F) in enumerate(zip(truth, found.signs(), factors, strict=True)):
        sums = terms(found.ranks[k] if found.ranks else None, signs.astype(dtype), F.astype(dtype), F.astype(dtype))
        if found.ranks:
            sums = [None if term is None else term[..., None] for term in sums]
        top = np.sqrt(true[range(len(q)), range(len(q)), 0])
        with np.errstate(invalid="ignore", divide="ignore"):
            errors = np.abs(series(sums, y.astype(dtype)) - true) / (top[:, None] * top)[..., None]
        worst = max(worst, float(errors.max()) if np.isfinite(errors).all() else np.inf)
    return worst
