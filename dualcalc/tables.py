"""Kernels as coefficient tables: what `approximate.py` makes and `codegen.py` prints.

With norms a, b and the cosine c of the angle theta, parity splits a kernel into `k = E(a, b, c^2) + c O(a, b, c^2)`:
E belongs to the even part of the activation, c O to the odd part. Both are smooth in sin(theta), kinks of the
activation at 0 included, and no arccos is needed. Each is a polynomial with coefficients that are separable in norms,

    sum_l P_l(x) sum_r sign_lr W_lr(a) W_lr(b),

with W_lr = sqrt(k(a, a, 1)) times a Chebyshev series in log a, so that errors are relative to sqrt(k11 k22). The W are
functions of single rows; a pair costs one multiply-add per separable term. `Table.__call__` is the model of generated
code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.polynomial.chebyshev import chebval

EPS = 2.0**-52


@dataclass(frozen=True)
class Part:
    """`sum_l P_l(x) sum_r sign_lr W_lr(a) W_lr(b)`, the terms in ascending order of l.

    ranks      the number of terms of each degree l = 0..L
    signs      (R,) of the terms, R = sum of ranks
    features   (R, D + 1) Chebyshev coefficients of W_lr / scale in y
    """

    ranks: tuple[int, ...]
    signs: np.ndarray
    features: np.ndarray

    @property
    def degree(self) -> int:
        return len(self.ranks) - 1

    @property
    def terms(self) -> int:
        return len(self.signs)


@dataclass(frozen=True)
class Table:
    """A kernel `constant + linear q12 + E + c O`, |error| <= error_bound sqrt(k11 k22) for norms in `norms`.

    basis         "chebyshev": P_l = T_l, x = (sqrt(1 - c^2 + shift) - middle) / half; "power": P_l = x^l, x = c^2
    shift         0 where the kernel is not smooth at c = 1; then 1 - c^2 must come from an exact determinant
    norms         (least, greatest): y = -1 and 1, y affine in log a; NaN outside
    log_scale     Chebyshev coefficients of log sqrt(k(a, a, 1)) in y; exp of it multiplies every W
    even, odd     E and O; None where that part of the activation is a polynomial of degree at most 1
    constant      s(0)^2 where the even part of the activation is constant, else 0
    linear        slope^2 where the odd part is linear, else 0
    error_bound   of the interpolations, truncations and quadratures, and of rounding in float64
    """

    basis: str
    shift: float
    norms: tuple[float, float]
    log_scale: np.ndarray
    even: Part | None
    odd: Part | None
    constant: float
    linear: float
    error_bound: float

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(p for p in (self.even, self.odd) if p is not None)

    @property
    def degree(self) -> int:
        return max((p.degree for p in self.parts), default=0)

    @property
    def terms(self) -> int:
        """Separable terms: what a pair costs."""
        return sum(p.terms for p in self.parts)

    @property
    def affine(self) -> tuple[float, float]:
        """(slope, offset) with y = slope log q + offset, q = a^2."""
        low, high = (2 * math.log(x) for x in self.norms)
        return 2 / (high - low), -(high + low) / (high - low)

    @property
    def interval(self) -> tuple[float, float]:
        """(middle, half) of the range of sqrt(1 - c^2 + shift)."""
        low, high = math.sqrt(self.shift), math.sqrt(1 + self.shift)
        return (low + high) / 2, (high - low) / 2

    def __call__(self, q12, q11, q22) -> np.ndarray:
        """The kernel in float64, broadcasting; NaN outside the norms and for what is no covariance matrix."""
        q12, q11, q22 = (np.asarray(q, dtype=float) for q in (q12, q11, q22))
        with np.errstate(all="ignore"):
            sine2, cosine = angle(q12, self._inside(q11), self._inside(q22), exact=self.shift == 0)
            middle, half = self.interval
            x = cosine**2 if self.basis == "power" else (np.sqrt(sine2 + self.shift) - middle) / half
            series = power_series if self.basis == "power" else chebyshev_series
            total = self.constant + self.linear * q12 + 0.0 * x
            for part, factor in ((self.even, 1.0), (self.odd, cosine)):
                if part is not None:
                    rows, columns = (self.features(part, q) for q in (q11, q22))
                    total = total + factor * series(_coefficients(part, rows, columns), x)
        return total

    def features(self, part: Part, q) -> np.ndarray:
        """W_lr at every q = a^2: (R, *q.shape). On the small arrays of rows and of columns, before the two meet."""
        y = self._y(q)
        return np.exp(chebval(y, self.log_scale)) * chebval(y, part.features.T)

    def diagonal(self, q) -> np.ndarray:
        """k(q, q, q), from the series of the scale."""
        return np.exp(2 * chebval(self._y(self._inside(np.asarray(q, dtype=float))), self.log_scale))

    def _y(self, q):
        slope, offset = self.affine
        return slope * np.log(q) + offset

    def _inside(self, q):
        """q, NaN where it is outside the norms by more than rounding."""
        low, high = (x * x for x in self.norms)
        return np.where((q >= low * (1 - 8 * EPS)) & (q <= high * (1 + 8 * EPS)), q, np.nan)


def _coefficients(part: Part, rows, columns) -> list[np.ndarray]:
    """sum_r sign_lr W_lr(a) W_lr(b) for l = 0..L."""
    ends = np.cumsum((0, *part.ranks))
    terms = [sign * row * column for sign, row, column in zip(part.signs, rows, columns, strict=True)]
    return [sum(terms[i:j], start=np.zeros(())) for i, j in zip(ends[:-1], ends[1:], strict=True)]


def chebyshev_series(coefficients, x):
    """sum_l c_l T_l(x) by Clenshaw's recurrence."""
    b1 = b2 = 0.0 * x
    for c in coefficients[:0:-1]:
        b1, b2 = c + 2 * x * b1 - b2, b1
    return coefficients[0] + x * b1 - b2


def power_series(coefficients, x):
    """sum_l c_l x^l by Horner's rule."""
    total = 0.0 * x
    for c in coefficients[::-1]:
        total = total * x + c
    return total


def angle(q12, q11, q22, exact: bool):
    """sin(theta)^2 and c = cos(theta), q12 projected where rounding took it beyond sqrt(q11 q22), NaN beyond that.

    exact   from the determinant to 1 eps: a kernel that is not smooth at c = 1 sees the square root of the error
    """
    cosine = q12 * (1 / np.sqrt(q11) * (1 / np.sqrt(q22)))
    sine2 = _determinant(q12, q11, q22) / (q11 * q22) if exact else (1 - cosine) * (1 + cosine)
    sine2 = np.where(sine2 < -16 * EPS, np.nan, np.clip(sine2, 0, 1))
    return sine2, np.clip(cosine, -1, 1)


def _determinant(q12, q11, q22):
    """q11 q22 - q12^2 with the rounding errors of both products (Dekker 1971)."""

    def product(x, y):
        (xh, xl), (yh, yl) = _split(x), _split(y)
        p = x * y
        return p, ((xh * yh - p) + xh * yl + xl * yh) + xl * yl

    (p, p_error), (r, r_error) = product(q11, q22), product(q12, q12)
    return (p - r) + (p_error - r_error)


def _split(x):
    """x = high + low, products of two parts exact (Veltkamp 1968)."""
    high = x * 134217729.0 - (x * 134217729.0 - x)
    return high, x - high
