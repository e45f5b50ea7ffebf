"""Depth fusion: the kernels of a whole network as one polynomial per sign of the cosine (MATH.md section 7).

Where the norms of the rows do not matter (a homogeneous network, or rows of one norm), NNGP and NTK at any depth are
functions of the cosine c alone, analytic in sigma = sqrt((1 - |c|)/2) = sin(theta/2) on either side of c = 0, kinks of
the activation included. Interpolated at Chebyshev points they cost the same at depth 3 and at depth 100. What the
functions are, this file does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.polynomial import chebyshev

DEGREES = (8, 10, 12, 14, 16, 20, 24, 32, 40, 50, 64)
HORNER = 16
"""Up to this degree powers of y are summed; Chebyshev polynomials above, as powers cancel."""

TOP = 0.5**0.5
POINTS = 200  # where the error is measured, for each sign


class Coefficients(NamedTuple):
    """Of the kernels, each (degree + 1,) in y = 2 sigma/TOP - 1, lowest first: for c >= 0 and for c < 0."""

    positive: tuple[Array, ...]
    negative: tuple[Array, ...]


@dataclass(frozen=True)
class Fused:
    """Polynomials for kernels as functions of c.

    coefficients   of the precision in which they are evaluated
    degree         of all of them; powers of y up to HORNER, Chebyshev polynomials above
    error          the largest error on 400 points, over the largest value, rounding included
    """

    coefficients: Coefficients
    degree: int
    error: float


def fuse(kernels: Callable[[np.ndarray], list[np.ndarray]], dtype, tol: float) -> Fused | None:
    """Polynomials of the least degree in DEGREES with an error of at most `tol`; None where none has.

    kernels   of cosines (n,) in float64: a list of float64 arrays (n,)
    """
    fine = TOP * (np.cos(np.linspace(0, np.pi, POINTS)) + 1) / 2
    true = [kernels(sign * (1 - 2 * fine**2)) for sign in (1, -1)]
    size = [max(np.abs(side[k]).max() for side in true) for k in range(len(true[0]))]
    for degree in DEGREES:
        nodes = np.cos(np.pi * (2 * np.arange(degree + 1) + 1) / (2 * degree + 2))
        sigma = TOP * (nodes + 1) / 2
        sides = []
        for sign in (1, -1):
            series = [chebyshev.chebfit(nodes, k, degree) for k in kernels(sign * (1 - 2 * sigma**2))]
            powers = [np.pad(p := chebyshev.cheb2poly(s), (0, degree + 1 - len(p))) for s in series]
            sides.append(tuple(jnp.asarray(s, dtype) for s in (powers if degree <= HORNER else series)))
        found = Coefficients(*sides)
        with np.errstate(invalid="ignore", divide="ignore"):
            errors = [
                np.abs(np.asarray(got, float) - k).max() / top
                for sign, side in zip((1, -1), true, strict=True)
                for got, k, top in zip(
                    evaluate(found, jnp.asarray(sign * (1 - 2 * fine**2), dtype), jnp.asarray(fine, dtype)),
                    side,
                    size,
                    strict=True,
                )
            ]
        if max(errors) <= tol:
            return Fused(found, degree, float(max(errors)))
    return None


def evaluate(coefficients: Coefficients, c: Array, sigma: Array | None = None) -> list[Array]:
    """The kernels at cosines c; sigma where it is known better than c."""
    if sigma is None:
        sigma = jnp.sqrt(jnp.maximum(1 - jnp.abs(c), 0) / 2)
    y, above = 2 / TOP * sigma - 1, c >= 0
    return [_series(p, n, y, above) for p, n in zip(*coefficients, strict=True)]


def _series(positive: Array, negative: Array, y: Array, above: Array) -> Array:
    terms = [jnp.where(above, p, n) for p, n in zip(positive, negative, strict=True)]
    if len(terms) <= HORNER + 1:
        total = terms[-1]
        for term in terms[-2::-1]:
            total = total * y + term
        return total
    first = second = jnp.zeros_like(y)
    for term in terms[:0:-1]:
        first, second = term + 2 * y * first - second, first
    return terms[0] + y * first - second
