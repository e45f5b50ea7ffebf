"""Kolmogorov mixtures: tanh, sigmoid, SiLU and softplus as sums of error functions, with a proved error for all t.

If K has Kolmogorov's distribution then exactly `tanh t = E erf(t / (sqrt(2) K))`, hence `sigmoid t = E Phi(t / (2 K))`,
and softplus, its integral, is `E relu(t + 2 K Z)`, Z standard normal. The trapezoid rule in log K makes finite mixtures
with positive weights, and the dual of every pair of error functions is closed (Williams 1996). So these kernels come
from another formula than the tables of `approximate.py`, which are tested against them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

EPS = 2.0**-52
ROOT = math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class Mixture:
    """tanh t = sum_i w_i erf(t / (sqrt(2) K_i)) - e(t), for all t.

    weights, scales   w_i > 0 with sum 1, and K_i, ascending
    value             bounds |e(t)|
    slope             bounds |e'(t)|, and so |e(t) / t|
    moment            bounds |t e'(t)|
    """

    weights: np.ndarray
    scales: np.ndarray
    value: float
    slope: float
    moment: float


def _density(k: np.ndarray) -> np.ndarray:
    """The density of Kolmogorov's distribution, for complex k with |arg k| < pi/4.

    P(K <= x) = 1 - 2 sum (-1)^(i-1) exp(-2 i^2 x^2) = sqrt(2 pi)/x sum exp(-(2i-1)^2 pi^2/(8 x^2))."""
    i = np.arange(1, 40).reshape(-1, *(1,) * np.ndim(k))
    with np.errstate(all="ignore"):
        far = np.sum(8 * k * (-1.0) ** (i - 1) * i**2 * np.exp(-2 * i**2 * k**2), axis=0)
        z = (2 * i - 1) ** 2 * math.pi**2 / (8 * k**2)
        near = math.sqrt(2 * math.pi) * np.sum(np.exp(-z) * (2 * z - 1), axis=0) / k**2
    return np.where(np.abs(k) > 1, far, near)


def _rays() -> tuple[np.ndarray, np.ndarray]:
    """Angles eta and, for each, the integrals M of `kolmogorov` for value, slope and moment, 1 % up."""
    eta, step = np.linspace(0.3, 0.76, 24), 0.02
    k = np.exp(np.arange(-3.0, 3.0, step) + 1j * eta[:, None])
    mass = 1.01 * step * np.abs(_density(k) * k)
    steepest = ROOT / np.sqrt(math.e * np.cos(2 * eta))
    return eta, np.stack([2 * mass.sum(1), ROOT * (mass / np.abs(k)).sum(1), steepest * mass.sum(1)])


@lru_cache
def kolmogorov(n: int = 27) -> Mixture:
    """The mixture of n error functions with the least proved error: the trapezoid rule in x = log K.

    Proof. Shift the line of integration to x + i eta, eta < pi/4: the rule of step h errs by at most
    2 M / (exp(2 pi eta / h) - 1), M the integral of |density(K) K| times a bound of the integrand on the ray
    z = t/K, |arg z| = eta. There |erf(z / sqrt 2)| <= 2, because |erfc(z)| <= |exp(-z^2)| <= 1 in that sector; the
    derivative in t is sqrt(2/pi) exp(-z^2/2) / K, and t times it at most sqrt(2/pi) / sqrt(e cos(2 eta)). Nodes left
    out count with their weights, and so does the scaling to sum 1. Every eta gives a bound.
    """
    if not 2 <= n <= 60:
        raise ValueError(f"n = {n!r} came; expected 2 to 60 error functions")
    eta, masses = _rays()
    found: Mixture | None = None
    for h in np.linspace(0.1, 0.8, 106):
        k = np.exp(h * np.arange(-40, 41))
        w = h * _density(k) * k
        start = int(np.argmax(np.convolve(w, np.ones(n), "valid")))
        kept = (np.arange(len(k)) >= start) & (np.arange(len(k)) < start + n)
        size = np.stack([w, ROOT * w / k, ROOT / math.sqrt(math.e) * w])  # bounds of each node's three terms
        discrete = np.min(2 * masses / np.expm1(2 * math.pi * eta / h), axis=1)
        scaling = abs(w[kept].sum() - 1) * size.sum(1) + 4 * EPS
        value, slope, moment = map(float, discrete + size[:, ~kept].sum(1) + scaling)
        if found is None or value < found.value:
            found = Mixture(w[kept] / w[kept].sum(), k[kept], value, slope, moment)
    assert found is not None
    return found


# ---- kernels --------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """Covariances p of t (tanh) or t/2 (the others) and, for scales K_i, K_j: A = p11 + K_i^2, B = p22 + K_j^2,
    R = sqrt(A B - p12^2). F = (2/pi) atan2(p12, R) is the dual of erf(./(sqrt 2 K_i)) and erf(./(sqrt 2 K_j))."""

    p12: np.ndarray
    p11: np.ndarray
    p22: np.ndarray
    A: np.ndarray
    B: np.ndarray
    R: np.ndarray

    @property
    def F(self) -> np.ndarray:
        return 2 / math.pi * np.arctan2(self.p12, self.R)


def _uv(p: Pair) -> np.ndarray:
    """E[u v f(u) g(v)] = p12 F + (p11 p22 + p12^2) F_12 + 2 p12 (p11 F_11 + p22 F_22), by Stein's lemma."""
    inner = p.p11 * p.p22 + p.p12**2 * (1 - p.p11 / p.A - p.p22 / p.B)
    return p.p12 * p.F + 2 / math.pi * inner / p.R


def _uv_slope(p: Pair) -> np.ndarray:
    """The derivative of `_uv` in p12."""
    share = p.p11 / p.A + p.p22 / p.B
    inner = p.p11 * p.p22 + p.p12**2 * (1 - share)
    return p.F + 2 / math.pi * p.p12 * ((3 - 2 * share) / p.R + inner / p.R**3)


class Member(NamedTuple):
    """E[s^(order)(u) s^(order)(v)] = start + ramp p12 + factor sum_ij w_i w_j term, p = inner^2 q.

    error   Mixture -> pairs (c0, c1): the activation errs by at most c0 + c1 |t|, for every pair
    """

    inner: float
    start: float
    ramp: float
    factor: float
    term: Callable[[Pair], np.ndarray]
    error: Callable[[Mixture], tuple[tuple[float, float], ...]]


def _softplus_error(m: Mixture) -> tuple[tuple[float, float], ...]:
    """At t = 0, plus the error of its slope, sigmoid, times |t|."""
    return ((abs(math.log(2) - ROOT * float(m.weights @ m.scales)) + 4 * EPS, m.value / 2),)


SIGMOID = Member(0.5, 0.25, 0.0, 0.25, lambda p: p.F, lambda m: ((m.value / 2, 0.0),))
MEMBERS: dict[str, tuple[Member, Member]] = {
    "tanh": (
        Member(1.0, 0.0, 0.0, 1.0, lambda p: p.F, lambda m: ((m.value, 0.0), (0.0, m.slope))),
        Member(1.0, 0.0, 0.0, 1.0, lambda p: 2 / math.pi / p.R, lambda m: ((m.slope, 0.0),)),
    ),
    "sigmoid": (
        SIGMOID,
        Member(0.5, 0.0, 0.0, 1 / 16, lambda p: 2 / math.pi / p.R, lambda m: ((m.slope / 4, 0.0),)),
    ),
    "silu": (
        Member(0.5, 0.0, 1.0, 1.0, _uv, lambda m: ((0.0, m.value / 2),)),
        Member(0.5, 0.25, 0.0, 0.25, _uv_slope, lambda m: (((m.value + m.moment) / 2, 0.0),)),
    ),
    "softplus": (
        Member(0.5, 0.0, 1.0, 1.0, lambda p: 2 / math.pi * p.R + p.p12 * p.F, _softplus_error),
        SIGMOID,
    ),
}
"""name -> (k, kdot). SiLU is t/2 + x tanh x and softplus t/2 + E|x + K Z| with x = t/2, each sum even but for t/2."""


def mixture_kernel(name: str, q12, q11, q22, *, order: int = 0, n: int = 27) -> tuple[np.ndarray, np.ndarray]:
    """k (order 0) or kdot (order 1) of tanh, sigmoid, silu or softplus, by n^2 closed forms, broadcasting.

    returns   values, and bounds of their error relative to sqrt(k11 k22), float64 rounding (about 1e-13) apart
    For A s(B t) take A^2 k and A^2 B^2 kdot at B^2 q12, B^2 q11, B^2 q22: the bounds stay.
    """
    if name not in MEMBERS or order not in (0, 1):
        raise ValueError(f"{name!r}, order {order!r} came; expected one of {', '.join(MEMBERS)}, order 0 or 1")
    member, m = MEMBERS[name][order], kolmogorov(n)
    q12, q11, q22 = np.broadcast_arrays(*(np.asarray(q, dtype=float) for q in (q12, q11, q22)))
    relative = []
    for q in (q11, q22):
        off = np.min([c0 + c1 * np.sqrt(q) for c0, c1 in member.error(m)], axis=0)
        relative.append(off / (np.sqrt(_value(member, m, q, q, q)) - off))
    left, right = relative
    return _value(member, m, q12, q11, q22), left + right + left * right


def _value(member: Member, m: Mixture, q12, q11, q22) -> np.ndarray:
    p12, p11, p22 = (member.inner**2 * q for q in (q12, q11, q22))
    total = np.zeros(p12.shape)
    gap = np.maximum(p11 * p22 - p12**2, 0)
    for w, i in zip(m.weights, m.scales**2, strict=True):
        for v, j in zip(m.weights, m.scales**2, strict=True):
            root = np.sqrt(gap + i * p22 + j * p11 + i * j)
            total += w * v * member.term(Pair(p12, p11, p22, p11 + i, p22 + j, root))
    return member.start + member.ramp * p12 + member.factor * total
