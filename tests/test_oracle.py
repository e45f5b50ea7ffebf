"""The oracle against the reference table, against itself at twice the digits, and against a wrong activation.

What `tests/oracle.py` states without proof (growth bounds, s' being the derivative of s) is sampled here.
"""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from flint import arb, ctx

from tests.oracle import ACTIVATIONS, DATA, POINTS, Activation, oracle

REFERENCE = json.loads((Path(__file__).parent / "data" / "activations.json").read_text())["activations"]
ALIASES = {
    "rectified_monomial_0": "step",
    "rectified_monomial_2": "rectified_monomial",
    "hermite_4": "hermite",
    "monomial_3": "monomial",
}


@pytest.fixture(autouse=True)
def precision():
    """Comparisons of balls at 600 bits; restored afterwards."""
    saved, ctx.prec = ctx.prec, 600
    yield
    ctx.prec = saved


@cache
def recorded() -> dict:
    return json.loads(DATA.read_text())["activations"]


def ball(record: dict, field: str) -> arb:
    return arb(record[field]) + arb(0, float(record[field + "_radius"]))


@pytest.mark.parametrize("name", REFERENCE)
def test_reference(name: str) -> None:
    """The first row of the reference and its row at c = -0.9999, to 1e-14 of sqrt(k11 k22)."""
    for index in (0, 6):
        q12, q11, q22, k, kdot, k11, k22, kdot11, kdot22 = REFERENCE[name]["rows"][index]
        value = oracle(ALIASES.get(name, name), q11, q12, q22)
        assert abs(float(value.k - arb(k))) <= 1e-14 * math.sqrt(k11 * k22)
        assert (value.kdot is None) == (kdot is None)
        if kdot is not None:
            assert abs(float(value.kdot - arb(kdot))) <= 1e-14 * math.sqrt(kdot11 * kdot22)


def test_arccosine() -> None:
    """ReLU's textbook form (Cho & Saul 2009) in balls lies inside the enclosure, at c = -0.999 too."""
    for q11, q12, q22 in ((1.0, 0.5, 1.0), (1.44, -0.95904, 0.64), (9.0, 8.999991, 9.0), (2.25, 2.25, 2.25)):
        root = (arb(q11) * q22 - arb(q12) ** 2).sqrt()
        angle = arb.pi() - arb.atan2(root, arb(q12))
        value = oracle("relu", q11, q12, q22)
        assert value.k.contains((root + angle * q12) / (2 * arb.pi()))
        assert value.kdot.contains(angle / (2 * arb.pi()))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_table(name: str) -> None:
    """Every recorded ball is within 1e-22 of the scale, obeys Cauchy-Schwarz, and is there at every point."""
    rows = recorded()[name]["rows"]
    assert recorded()[name]["definition"] == ACTIVATIONS[name].definition
    assert len(rows) == len(POINTS) - (name == "softshrink")  # zero to 50000 digits at norm 1e-3
    for record in rows:
        for field in ("k",) if ACTIVATIONS[name].jumps else ("k", "kdot"):
            scale = (ball(record, field + "11") * ball(record, field + "22")).sqrt()
            assert ball(record, field).rad() < 1e-22 * scale
            assert not abs(ball(record, field)) > scale
        assert not ACTIVATIONS[name].jumps or "kdot" not in record


@pytest.mark.parametrize("name", ["hard_swish", "tanh", "abrelu"])
def test_twice_the_digits(name: str) -> None:
    """A recomputation to 48 digits, with more nodes and a wider domain, lies in the recorded ball."""
    record = recorded()[name]["rows"][4]
    q11, q12, q22 = (float.fromhex(record[q]) for q in ("q11", "q12", "q22"))
    finer = oracle(name, q11, q12, q22, digits=48)
    assert finer.radius < 1e-44
    assert ball(record, "k").contains(finer.k) and ball(record, "kdot").contains(finer.kdot)


def test_perturbed_activation() -> None:
    """A relative change of 1e-20 in one slope leaves the enclosure; one in the kink's place by 2^-52 does too."""
    q = (1.44, -0.95904, 0.64)
    slope = arb("1.1") * (1 + arb("1e-20"))
    base = ACTIVATIONS["abrelu"]
    right = (lambda t: slope * t, lambda t: t * 0 + slope)
    wrong = base._replace(pieces=(base.pieces[0], right))
    assert not oracle(wrong, *q).k.overlaps(oracle(base, *q).k)
    assert not oracle(wrong, *q).kdot.overlaps(oracle(base, *q).kdot)
    base = ACTIVATIONS["hardtanh"]
    moved = base._replace(breaks=(-1.0, math.nextafter(1.0, 2.0)))
    assert not oracle(moved, 1.0, 0.5, 1.0).kdot.overlaps(oracle(base, 1.0, 0.5, 1.0).kdot)


@pytest.mark.parametrize("name", ["hardtanh", "gelu", "triangle"])
def test_kdot_is_the_slope_of_k(name: str) -> None:
    step = 2.0**-20
    above, below = (oracle(name, 1.0, 0.5 + h, 1.5).k for h in (step, -step))
    assert abs(float((above - below) / (2 * step) - oracle(name, 1.0, 0.5, 1.5).kdot)) < 1e-10


def test_projection() -> None:
    """q12 past +-sqrt(q11 q22) by rounding is the value there; impossible norms are refused."""
    q = 0.1
    for sign in (1, -1):
        past, at = oracle("elu", q, sign * math.nextafter(q, 1.0), q), oracle("elu", q, sign * q, q)
        assert past.k.overlaps(at.k) and past.kdot.overlaps(at.kdot)
    near = oracle("elu", q, math.nextafter(q, 0.0), q)
    assert abs(float(near.k - oracle("elu", q, q, q).k)) < 1e-16
    with pytest.raises(ValueError, match="norms must be positive"):
        oracle("elu", 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="no scale"):
        oracle("softshrink", 1e-6, 5e-7, 1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_statements(name: str) -> None:
    """Sampled on [-30, 30]: the growth bound, s' against a difference quotient, continuity unless `jumps`."""
    activation: Activation = ACTIVATIONS[name]
    zero = (lambda t: arb(0), lambda t: arb(0))
    pieces = [pair or zero for pair in activation.pieces]
    constant, degree, rate = activation.growth
    step = arb(2) ** -60
    for t in np.linspace(-30, 30, 301):
        s, ds = pieces[int(np.searchsorted(activation.breaks, t))]
        x = arb(float(t))
        bound = constant * (1 + abs(x)) ** degree * (rate * abs(x)).exp()
        assert abs(s(x)) < bound * 1.000001 and abs(ds(x)) < bound * 1.000001
        assert abs((s(x + step) - s(x - step)) / (2 * step) - ds(x)) < 1e-25 * bound
    jumps = any(abs(pieces[i][0](arb(t)) - pieces[i + 1][0](arb(t))) > 0 for i, t in enumerate(activation.breaks))
    assert jumps == activation.jumps
