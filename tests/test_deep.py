"""Deep networks: loops over repeated layers, depth fusion, and nearly parallel rows in float32."""

import mpmath as mp
import numpy as np
import pytest
import sympy as sp

from dualcalc import Activation, Dense, LayerNorm, Residual, derive, from_kernel, repeat, serial
from dualcalc.parsing import q11, q12, q22

from .tiers import thinned

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((12, 9))
UNIT = ROWS * (3 / np.linalg.norm(ROWS, axis=1, keepdims=True))  # q = 1
BOTH = ("nngp", "ntk")


def deep(depth, activation, W_std=1.0, b_std=0.0):
    return serial(*[Dense(W_std, b_std), Activation(activation)] * depth, Dense(W_std, b_std))


def close(kernels, expected, bound):
    for k, e in zip(kernels, expected, strict=True):
        assert np.abs(np.asarray(k, float) - np.asarray(e, float)).max() <= bound * np.abs(np.asarray(e)).max()


def test_a_loop_is_the_layers_one_by_one():
    """Eight blocks with numbers of their own: the diagonal by hand, as k = q/2 and kdot = 1/2 there."""
    widths = [1 + 0.1 * i for i in range(8)]
    net = serial(*(layer for w in widths for layer in (Dense(w, 0.1), Activation("relu"))))
    assert len(list(net._runs(False))) == 1
    q, theta = (ROWS * ROWS).mean(1), 0.0
    for w in widths:
        q = w * w * q + 0.01
        q, theta = q / 2, (q + w * w * theta) / 2
    close([np.diag(k) for k in net(ROWS, get=BOTH)], [q, theta], 1e-14)
    cross = net(ROWS, ROWS[:5], get=BOTH)
    close([k[:, :5] for k in net(ROWS, get=BOTH)], cross, 1e-7)  # but for c = 1, rounded


def test_two_hundred_layers_compile():
    kernel = deep(200, "relu", 2**0.5)(ROWS[:3])
    assert np.isfinite(kernel).all() and (kernel == kernel.T).all()


def test_row_outside_the_domain_in_a_loop():
    net = serial(repeat(serial(Dense(3.0), Activation("exp(t**2/8)")), 6), Dense())
    with pytest.raises(ValueError, match=r"row 0 of X has variance q = .* at layer 4, Activation"):
        net(np.full((1, 2), 0.1), get="nngp")


FUSED = {
    "homogeneous": (lambda: deep(3, "relu", 1.3), ROWS),
    "squared": (lambda: deep(2, "squared_relu"), ROWS),
    "residual": (lambda: serial(Dense(), Residual(Activation("relu"), Dense(1.1)), Activation("abs"), Dense()), ROWS),
    "norms that LayerNorm removes": (
        lambda: serial(Dense(1.3), LayerNorm(), Activation("gelu"), Dense(1.2, 0.3), Activation("erf"), Dense()),
        ROWS * np.geomspace(0.1, 10, 12)[:, None],
    ),
    "one norm": (lambda: deep(3, "gelu", 1.5, 0.1), UNIT),
    "LayerNorm": (lambda: serial(Dense(1.5), Activation("erf"), Dense(), LayerNorm(), Activation("gelu")), UNIT),
    "depth 20": (lambda: deep(20, "relu", 2**0.5), ROWS),
}


@pytest.mark.parametrize(
    "name", thinned(FUSED, {"squared", "residual", "LayerNorm", "norms that LayerNorm removes", "depth 20"})
)
def test_fusion(name):
    net, rows = FUSED[name][0](), FUSED[name][1]
    exact = net(rows, get=BOTH)
    single = rows.astype(np.float32)
    polynomials = net.fusion(single, get=BOTH)
    assert polynomials is not None and polynomials.error <= 8 * 2.0**-23
    close(net(single, get=BOTH), exact, 2e-6)
    close(net(single, single[:5], get=BOTH), [k[:, :5] for k in exact], 2e-6)
    if name != "depth 20":
        double = net.fusion(rows, get=BOTH, tol=1e-11)
        assert double.degree > polynomials.degree and double.error <= 1e-11
        close(net(rows, get=BOTH, tol=1e-11), exact, 2e-11)


@pytest.mark.parametrize("name", thinned(["gelu", "erf", "tanh"], {"gelu", "tanh"}))
def test_fusion_of_free_norms(name):
    """Polynomials also in the norms, for NNGP and NTK at once; taken by themselves where pairs are many."""
    net = deep(3, name, 1.2, 0.1)
    rows = np.random.default_rng(1).normal(size=(725, 9))
    rows *= (np.linspace(1.5, 6, 725) / np.linalg.norm(rows, axis=1))[:, None]
    single = rows.astype(np.float32)
    found = net.fusion(single, get=BOTH)
    assert found.error <= 8 * 2.0**-23 and found.terms and net.fusion(single[:720], get=BOTH) is None
    assert deep(3, "relu", 1.2, 0.1).fusion(single) is None
    exact = net(rows[:60], get=BOTH, tol=0)
    close([k[:60, :60] for k in net(single, get=BOTH)], exact, 2e-6)
    close(net(single[:60], single[:5], get=BOTH, tol=1e-5), [k[:, :5] for k in exact], 1.1e-5)
    if name == "gelu":
        assert net.fusion(rows, tol=1e-9).error <= 1e-9
        close([net(rows[:60], tol=1e-9)], [exact.ntk], 1e-8)


def test_no_fusion():
    uneven = ROWS.astype(np.float32) * np.geomspace(1, 40, len(ROWS), dtype=np.float32)[:, None]
    for net, rows in (
        (deep(3, "relu", 1.0, 0.1), ROWS.astype(np.float32)),  # a kink behind a bias: not smooth in the norms
        (deep(3, "gelu"), uneven),  # variances too far apart
        (deep(3, "gelu"), np.concatenate([ROWS, np.zeros((1, 9))]).astype(np.float32)),
    ):
        assert net.fusion(rows, tol=1e-5) is None
    assert deep(3, "gelu")(ROWS).dtype == np.float64
    for net, rows, tol in (
        (deep(3, "gelu"), ROWS.astype(np.float32), None),  # norms matter
        (deep(3, "relu", 1.0, 0.1), ROWS.astype(np.float32), None),  # as biases do
        (
            serial(Dense(1.5, 0.5), LayerNorm(), Activation("relu"), Dense()),
            ROWS.astype(np.float32),
            None,
        ),  # a bias first
        (deep(1, "tanh"), ROWS.astype(np.float32), None),
        (serial(Dense(), Activation(from_kernel(lambda q12, q11, q22: q12 + q12**2))), ROWS.astype(np.float32), None),
        (deep(3, "relu"), ROWS, None),  # float64 is exact unless a tolerance is given
        (deep(3, "relu"), ROWS.astype(np.float32), 0),
        (deep(3, "relu"), ROWS.astype(np.float32), 1e-12),  # beyond float32
    ):
        assert net.fusion(rows, tol=tol) is None


@pytest.mark.slow
def test_without_fusion():
    close([deep(1, "tanh")(ROWS.astype(np.float32))], [deep(1, "tanh")(ROWS)], 1e-5)
    zero = np.concatenate([ROWS, np.zeros((1, 9))]).astype(np.float32)
    assert (deep(3, "relu")(zero)[-1] == 0).all()


@pytest.mark.parametrize("name", thinned(["relu", "gelu", "erf"], {"relu", "erf"}))
def test_depth_200_in_float32(name):
    """Theta of nearly parallel rows at the edge of chaos, W_std^2 = 1/k(1, 1, 1), against 80 digits: 1e-5."""
    d, depth, gaps = derive(name), 200, np.array([1e-6, 1e-3])
    k, kdot = (sp.lambdify((q12, q11, q22), e, "mpmath") for e in (d.k, d.kdot))
    # rows (a, b) and (a, -b): c = (a^2 - b^2)/(a^2 + b^2), and the difference is exact
    half = np.sqrt(gaps).astype(np.float32)
    rows = np.stack([np.sqrt(2 - half.astype(float) ** 2), half], axis=1).astype(np.float32)
    with mp.workdps(80):
        w = 1 / k(*[mp.mpf(1)] * 3)
        W_std = float(mp.sqrt(w))
        w, expected = mp.mpf(W_std) ** 2, []
        for a, b in rows.astype(float):
            q, cov = (mp.mpf(a) ** 2 + mp.mpf(b) ** 2) / 2, (mp.mpf(a) ** 2 - mp.mpf(b) ** 2) / 2
            theta = mp.mpf(0)
            for _ in range(depth):
                q, cov, theta = w * q, w * cov, w * (cov + theta)
                q, cov, theta = k(q, q, q), k(cov, q, q), theta * kdot(cov, q, q)
            expected.append(float(mp.re(theta)))
    net = repeat(serial(Dense(W_std), Activation(name)), depth)
    kernel = net(rows, rows * np.float32([1, -1]))
    assert kernel.dtype == np.float32
    assert np.allclose(np.diag(kernel), expected, rtol=1e-5, atol=0), np.diag(kernel) / expected - 1


def test_a_bias_before_a_layer_norm():
    """The norms are gone after LayerNorm, but the directions remember them: x and b had their share."""
    net, rows = (
        serial(Dense(1.5, 0.5), LayerNorm(), Activation("relu"), Dense()),
        ROWS * np.geomspace(0.1, 10, 12)[:, None],
    )
    close([net(rows.astype(np.float32))], [net(rows)], 2e-6)


def test_nearly_parallel_rows():
    """Rows at angles from 1 to 1e-6, opposite ones too: float32 as good as the recursion in float64."""
    angles = np.concatenate([10.0 ** -np.arange(7), np.pi - 10.0 ** -np.arange(1, 7), [0.0]])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32) * 2
    rows[0] *= 3
    net = deep(3, "gelu", 1.5, 0.1)
    single, double = net(rows, get=BOTH), net(rows.astype(float), get=BOTH)
    for k, e in zip(single, double, strict=True):
        assert (k == k.T).all()
        assert (np.abs(np.asarray(k) - np.asarray(e)) <= 3e-6 * np.sqrt(np.outer(np.diag(e), np.diag(e)))).all()
