"""Activations without closed form: what `compile` and `emit` make of the tables of `approximate.py`."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dualcalc as dc
from dualcalc import codegen

REFERENCE = json.loads((Path(__file__).parent / "data" / "activations.json").read_text())["activations"]
OPEN = ("tanh", "silu", "softplus")  # those of the reference that are outside the closed class


def agrees(name, tol):
    """k and kdot at the ten reference covariances, over their scales, within the bounds that are stated."""
    fns = dc.compile(name, tol=tol)
    assert fns.method in ("theta-chebyshev", "hermite") and fns.degree > 0 and fns.norms == (1e-3, 10.0)
    assert max(fns.error_bound) <= tol
    rows = np.array([[np.nan if x is None else x for x in row] for row in REFERENCE[name]["rows"]])
    for m, f in ((0, fns.k), (1, fns.kdot)):
        error = np.abs(np.asarray(f(*rows.T[:3])) - rows[:, 3 + m])
        assert np.all(error <= (fns.error_bound[m] + 1e-13) * np.sqrt(rows[:, 5 + 2 * m] * rows[:, 6 + 2 * m]))


def test_reference():
    agrees("tanh", 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPEN)
def test_reference_to_ten_digits(name):
    agrees(name, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sigmoid", "silu", "softplus", "mish", "tanh_gelu", "softsign"])
def test_every_open_entry(name):
    fns = dc.compile(name)
    assert max(fns.error_bound) <= 1e-6
    d = float(fns.diagonal[0](1.0))
    assert abs(float(fns.k(1.0, 1.0, 1.0)) - d) <= 1e-6 * d


def test_targets_agree():
    ours = codegen.load(dc.emit("tanh"), "jax")
    grid = [
        (c * a * b, a * a, b * b) for a, b in ((1, 1), (0.01, 3), (9, 9), (0.5, 0.4)) for c in (-1, -0.3, 0, 0.7, 1)
    ]
    q = np.array(grid).T
    for target in ("numpy", "numba"):
        theirs = codegen.load(dc.emit("tanh", target), target)
        for f, g in ((ours.k, theirs.k), (ours.kdot, theirs.kdot)):
            scale = np.sqrt(np.asarray(f(q[1], q[1], q[1])) * np.asarray(f(q[2], q[2], q[2])))
            assert np.all(np.abs(np.asarray(f(*q)) - np.asarray(g(*q))) <= 1e-12 * scale), target
        assert np.isnan(theirs.k(0.0, np.array([1e-8, 121.0]), 1.0)).all()


def test_the_emitted_file_checks_itself(tmp_path):
    file = tmp_path / "tanh_dual.py"
    file.write_text(dc.emit("tanh", "numpy"))
    done = subprocess.run([sys.executable, "-I", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "largest relative error" in done.stdout, done.stdout + done.stderr
    file.write_text(file.read_text().replace("* T", "* T").replace('"linear": 0.0', '"linear": 0.001'))
    assert subprocess.run([sys.executable, "-I", str(file)], capture_output=True, check=False).returncode == 1


def test_shapes_precision_and_limits():
    f = dc.compile("tanh")
    column, row = jnp.linspace(0.5, 2.0, 4)[:, None], jnp.linspace(0.5, 2.0, 3)[None, :]
    table = f.k(0.25, column, row)
    assert table.shape == (4, 3) and table.dtype == jnp.float64
    assert float(table[1, 2]) == pytest.approx(float(f.k(0.25, column[1, 0], row[0, 2])), rel=1e-14)
    single = f.k(*(np.float32(x) for x in (0.5, 1, 1)))
    assert single.dtype == jnp.float32 and float(single) == pytest.approx(float(f.k(0.5, 1.0, 1.0)), rel=3e-6)
    assert np.isnan(f.k(0.0, 1e-8, 1.0)) and np.isnan(f.k(0.0, 1.0, 101.0))
    with pytest.raises(ValueError, match="covariance"):
        f.k(1.5, 1.0, 1.0)
    many = jnp.full((300, 300), 0.25)
    whole = f.k(many, jnp.ones((300, 300)), jnp.ones((300, 300)))  # block by block
    assert np.allclose(whole, float(f.k(0.25, 1.0, 1.0)), rtol=1e-13, atol=0)


@pytest.mark.slow  # minutes of XLA compilation, for the second derivatives
def test_derivatives():
    """dk/dq12 is kdot, the norms' derivatives are right, and nothing is NaN on the diagonal."""
    f, h = dc.compile("tanh"), 1e-4
    for q in ((0.5, 1.0, 1.5), (1.0, 1.0, 1.0), (-0.6, 0.9, 0.4)):
        slope = jax.grad(f.k, (0, 1, 2))(*q)
        assert float(slope[0]) == pytest.approx(float(f.kdot(*q)), rel=1e-12)
        assert np.isfinite(np.asarray(jax.hessian(lambda x: f.k(*x))(jnp.array(q)))).all()
        assert np.isfinite(np.asarray(jax.grad(lambda x: f.kdot(*x))(jnp.array(q)))).all()
    q = (0.5, 1.0, 1.5)
    moved = [float(f.k(q[0], q[1] + d, q[2])) for d in (h, -h)]
    assert float(jax.grad(f.k, 1)(*q)) == pytest.approx((moved[0] - moved[1]) / (2 * h), rel=1e-4)


@pytest.mark.slow
def test_network():
    """Symmetric, its diagonal from one-dimensional quadrature; rows outside the norms raise."""
    net = dc.serial(dc.Dense(1.5, 0.1), dc.Activation("tanh"), dc.Dense())
    X = np.random.default_rng(0).standard_normal((6, 8))
    nngp, ntk = net(X, get=("nngp", "ntk"))
    assert np.array_equal(nngp, nngp.T) and np.array_equal(ntk, ntk.T)
    f = net.layers[1].fns
    q = 2.25 * np.sum(X * X, axis=1) / 8 + 0.01
    assert np.allclose(np.diag(nngp), f.diagonal[0](jnp.asarray(q)), rtol=1e-14)
    assert np.all(np.linalg.eigvalsh(nngp) > -1e-5)
    with pytest.raises(ValueError, match="norms 0.001 <= sqrt"):
        net(1e3 * X)


def test_refusals():
    with pytest.raises(dc.NoClosedForm, match="Way out"):
        dc.emit("tanh", "latex")
    with pytest.raises(dc.NoClosedForm, match="numbers for its parameters: A"):
        dc.compile("tanh(A*t)")
    with pytest.raises(ValueError, match="norms"):
        dc.compile("tanh", norms=(2, 1))
    with pytest.raises(ValueError, match="tol"):
        dc.compile("tanh", tol=-1.0)
    with pytest.raises(ValueError, match="square-integrable|resolved"):
        dc.compile("exp(t**2)*tanh(t)")
