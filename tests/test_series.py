"""The power series of whole networks against the exact kernels, and against compositions of polynomials by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from numpy.polynomial import polynomial

import dualcalc as dc
from dualcalc.dual import Dual
from dualcalc.parsing import q11, q12, q22
from dualcalc.series import DEGREE, series

GAUSSIAN = dc.from_kernel(kappa="exp(t - 1)")


def connected(activation, depth, W_std=1.5, b_std=0.1):
    return dc.serial(*[dc.Dense(W_std, b_std), dc.Activation(activation)] * depth, dc.Dense())


NETWORKS = {
    "gelu": connected("gelu", 2),
    "normalized gaussian": connected(GAUSSIAN, 2, 1.0, 0.0),
    "branches": dc.serial(
        dc.Dense(1.2, 0.1),
        dc.FanOut(2),
        dc.parallel(dc.serial(dc.Activation("sin(t)"), dc.Dense()), dc.serial(dc.Activation("t**2"), dc.Dense(0.5))),
        dc.FanInSum(),
        dc.Scale(0.7),
        dc.Residual(dc.LayerNorm(), dc.Activation("sin(t)"), dc.Dense(0.5, 0.2)),
    ),
}
SLOW = {
    "loop": connected("gelu", 5, 1.0),
    "relu": connected("relu", 2, 2**0.5, 0.0),
    "tanh": connected("tanh(t)", 4),
    "erf": connected("erf(t)", 5),
    "relu with biases": connected("relu", 3, 2**0.5, 0.3),
}


def pairs(a, b, c):
    """Rows in the plane with these norms |x|/sqrt(d) and cosines."""
    X, Y = np.stack([a, 0 * a], 1), np.stack([b * c, b * np.sqrt(1 - c * c)], 1)
    return np.sqrt(2) * X, np.sqrt(2) * Y


def misses(net, found, get):
    """|series - exact kernel| over sqrt(K(x, x) K(y, y)) of 60 random pairs."""
    rng = np.random.default_rng(1)
    a, b = np.exp(rng.uniform(np.log(0.5), np.log(2), (2, 60)))
    c = np.append(rng.uniform(-1, 1, 57), [1.0, -1.0, 0.0])
    X, Y = pairs(a, b, c)
    K = np.diagonal(net(X, Y, get=get))
    size = np.sqrt(np.diagonal(net(X, get=get)) * np.diagonal(net(Y, get=get)))
    return np.abs(found.kernel(a, b, c) - K) / size


FAST = {("gelu", "ntk"), ("normalized gaussian", "nngp"), ("branches", "ntk")}


@pytest.mark.parametrize(
    "name, get",
    [
        pytest.param(n, get, marks=() if (n, get) in FAST else pytest.mark.slow)
        for n in NETWORKS | SLOW
        for get in ("nngp", "ntk")
    ],
)
def test_series_is_the_kernel_within_its_error(name, get):
    net = (NETWORKS | SLOW)[name]
    found = series(net, (0.5, 2.0), get)
    assert misses(net, found, get).max() <= found.error + 1e-9
    assert found.error <= 1.2e-3 or (found.degree == DEGREE and found.truncation > 1e-3)
    assert found.residual <= 2e-4


def test_rank_one_is_algorithm_1():
    """The normalized Gaussian at depth 2: kappa(kappa(c)) and the NTK, composed as polynomials."""
    degree = 12
    kappa = np.exp(-1) / np.array([float(sp.factorial(j)) for j in range(60)])

    def composed(outer, inner):
        total = np.zeros(1)
        for coefficient in outer[::-1]:
            total = polynomial.polyadd(polynomial.polymul(total, inner)[: degree + 1], [coefficient])
        return total[: degree + 1]

    q = theta = np.array([0.0, 1.0])
    for _ in range(2):
        slope = q = composed(kappa, q)
        theta = polynomial.polyadd(q, polynomial.polymul(theta, slope)[: degree + 1])
    found = series(connected(GAUSSIAN, 2, 1.0, 0.0), (1.0, 1.0), degree=degree)
    assert found.table.shape == (degree + 1, 1, 1)
    np.testing.assert_allclose(np.square(found.table[:, 0, 0]), theta, rtol=1e-9)


def test_one_layer_has_the_hermite_coefficients():
    found = series(dc.serial(dc.Dense(), dc.Activation("relu")), (0.3, 3.0), "nngp", degree=20)
    np.testing.assert_allclose(np.abs(found.table[:, 0, 0]), np.abs(dc.hermite("relu", 20)), atol=1e-7)
    assert found.power == 1 and found.norms == (0.0, np.inf)  # homogeneous: one norm serves all
    odd = series(dc.serial(dc.Dense(), dc.Activation("erf(t)")), (0.5, 2.0), "nngp", tol=1e-4)
    assert not odd.ranks[::2].any() and odd.ranks[1::2].all()  # zero degrees are known


def test_slow_series_say_so():
    net = connected("relu", 1, 2**0.5, 0.0)
    errors = [series(net, (1.0, 1.0), degree=n).error for n in (16, 64, 256)]
    assert series(net, (1.0, 1.0)).degree == DEGREE
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2.0, rtol=0.1)  # as degree^-1/2


def test_zero_rows_and_no_value_there():
    net = connected("sin(t)", 1)
    found = series(net, (0.5, 2.0))
    a, b = np.array([0.0, 0.0]), np.array([0.0, 1.3])
    K = np.asarray(net(np.stack([a, 0 * a], 1), np.stack([b, 0 * b], 1) * 2**0.5))
    np.testing.assert_allclose(found.kernel(a, b, np.zeros(2)), np.diagonal(K), atol=1e-3)
    assert np.isnan(series(connected("tanh(t)", 1, 1.0, 0.0), (0.5, 2.0)).at_zero).all()


def test_parameters_reach_the_series():
    fixed, traced = (dc.Activation("abrelu", A=0.3, B=b) for b in (1.1, jnp.asarray(1.1)))
    tables = [series(dc.serial(dc.Dense(), act, dc.Dense()), (1.0, 2.0), degree=8).table for act in (fixed, traced)]
    np.testing.assert_allclose(*tables, atol=1e-12)


def test_a_callable_kernel_has_a_series():
    def kernel(a, b, c):
        return jnp.sqrt(b * c) * jnp.exp(a / jnp.sqrt(b * c) - 1)

    formula, numeric = (connected(k, 2, 1.0, 0.0) for k in (GAUSSIAN, dc.from_kernel(kernel)))
    tables = [np.square(series(net, (1.0, 1.0), degree=9).table) for net in (formula, numeric)]
    np.testing.assert_allclose(*tables, rtol=1e-9)


def test_negative_coefficients_are_refused():
    kernel = q12 - sp.Rational(1, 5) * q12**3 / (q11 * q22)  # from_kernel would refuse it at once
    net = dc.serial(dc.Dense(), dc.Activation(Dual(None, kernel, (), {}, "not a kernel")), dc.Dense())
    with pytest.raises(ValueError, match=r"coefficient of c\^3 has the eigenvalue -0.*not positive semi-definite"):
        series(net, (1.0, 1.0))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"get": "both"}, "'nngp' or 'ntk'"),
        ({"norms": (2.0, 1.0)}, "least, greatest"),
        ({"norms": (0.0, 1.0)}, "least, greatest"),
        ({"tol": 2}, "between 0 and 1"),
        ({"degree": -1}, "from 0 to 512"),
        ({"net": dc.Dense()}, "a network was expected"),
        ({"net": dc.serial(dc.Dense(), dc.Dropout(0.5))}, "Dropout"),
        ({"net": dc.serial(dc.Conv((3, 3)), dc.Flatten(), dc.Dense())}, "images"),
        ({"net": dc.serial(dc.Dense(), dc.Activation("sign(t)"), dc.Dense())}, "delta|jump"),
    ],
)
def test_bad_input(change, message):
    given = {"net": connected("relu", 1), "norms": (1.0, 2.0), "get": "ntk"} | change
    net, norms, get = (given.pop(name) for name in ("net", "norms", "get"))
    with pytest.raises(ValueError, match=message):
        series(net, norms, get, **given)
