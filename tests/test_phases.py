"""Phases against published values, by hand and by iteration; diagrams against phases one by one."""

import itertools
import math

import numpy as np
import pytest

import dualcalc as dc
from dualcalc import codegen
from dualcalc.phases import diagram, phase


def test_phase_of_tanh_as_published():
    """Schoenholz et al. 2017: tanh is critical at W_std^2 = 1.76, b_std^2 = 0.05, and at (1, 0)."""
    found = phase("tanh", 1.76**0.5, 0.05**0.5)
    assert abs(found.chi_1 - 1) < 1e-3 and found.depth_scale > 1000
    assert found.line[0].W_std == pytest.approx(1, abs=1e-5) and found.line[0].b_std < 1e-6
    between = np.interp(0.05**0.5, [p.b_std for p in found.line], [p.W_std for p in found.line])
    assert between**2 == pytest.approx(1.76, abs=5e-3)


def test_phase_of_relu_by_hand():
    """E[relu^2] = q/2, E[relu'^2] = 1/2: critical at (sqrt(2), 0) alone; q* = b^2/(1 - W^2/2) below."""
    critical = phase("relu", math.sqrt(2), 0.0)
    assert (critical.name, critical.q, critical.depth_scale) == ("critical", 1.0, math.inf)
    assert {(round(p.W_std, 12), p.b_std) for p in critical.line} == {(round(math.sqrt(2), 12), 0.0)}
    ordered = phase("relu", 1.0, 0.1)
    assert (ordered.name, ordered.c) == ("ordered", 1.0)
    assert ordered.q == pytest.approx(0.02, rel=1e-12) and ordered.chi_1 == pytest.approx(0.5, rel=1e-12)
    assert ordered.depth_scale == pytest.approx(1 / math.log(2), rel=1e-12)
    assert phase("relu", 2.0, 0.1).name == "diverging"


@pytest.mark.parametrize(
    "name, W_std, b_std",
    [("erf", 2.0, 0.1), *(pytest.param(*x, marks=pytest.mark.slow) for x in (("sin", 1.6, 0.2), ("gelu", 1.5, 0.1)))],
)
def test_phase_is_where_a_deep_network_ends(name, W_std, b_std):
    """Sixty layers of the kernel itself, from q = 1 and c = 0.6."""
    found = phase(name, W_std, b_std)
    block = [dc.Activation(name), dc.Dense(W_std, b_std)]
    net = dc.serial(dc.Dense(), *block * 60)
    rows = np.sqrt(2) * np.array([[1.0, 0.0], [0.6, 0.8]])
    K = np.asarray(net(rows, get="nngp"))
    assert K[0, 0] == pytest.approx(found.q, rel=1e-8)
    assert K[0, 1] / K[0, 0] == pytest.approx(found.c, abs=2e-4)


def test_depth_scale_is_the_rate_of_convergence():
    found = phase("erf", 2.0, 0.1)
    fns = dc.compile("erf")
    slope = 4.0 * float(fns.kdot(found.c * found.q, found.q, found.q))
    assert found.depth_scale == pytest.approx(-1 / math.log(slope), rel=1e-8)
    assert found.fixed[0].stable and found.fixed[0].q == found.q


def test_points_of_the_critical_line_are_critical():
    line = [p for p in phase("tanh").line if 0.1 < p.q < 3]
    for point in line[::10]:
        found = phase("tanh", point.W_std, point.b_std)
        assert found.name == "critical" and found.q == pytest.approx(point.q, rel=1e-6)
    assert not any(p.stable for p in phase("exp").line)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: phase("sign"), "jumps at t = 0"),
        (lambda: phase("3"), "is constant"),
        (lambda: phase("relu", -1.0), "W_std=-1.0 came"),
        (lambda: phase("relu", 1e308), "from 0 to 1e\\+06"),
        (lambda: phase("relu", 1.0, math.nan), "b_std=nan came"),
        (lambda: phase("normalized_gaussian"), "defined by its kernel"),
        (lambda: phase("sin(A*t)"), "A"),
    ],
)
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said):
        call()


W, B = np.array([0.0, 0.5, 1.0, 1.5, 2.0]), np.array([0.0, 0.1, 1.0])


@pytest.mark.parametrize("name", ["erf", "relu", "gelu", "identity", "exp", "sin"])
def test_diagram_is_phase_at_every_point(name):
    """The one from k and kdot, the other from moments and Hermite coefficients."""
    module = codegen.load(codegen.emit(name, "numpy"), "numpy")
    with np.errstate(over="ignore"):
        found = diagram(module.k, module.kdot, W, B)
    for (i, b), (j, w) in itertools.product(enumerate(B), enumerate(W)):
        one = phase(name, float(w), float(b))
        assert found.q[i, j] == pytest.approx(one.q, rel=1e-9)
        if math.isfinite(one.q):
            assert found.chi_1[i, j] == pytest.approx(one.chi_1, rel=1e-6)
            assert found.depth_scale[i, j] == pytest.approx(one.depth_scale, rel=1e-5, nan_ok=True)


def test_line_of_a_diagram():
    module = codegen.load(codegen.emit("erf", "numpy"), "numpy")
    line = diagram(module.k, module.kdot, W, B).line
    line = line[np.isfinite(line).all(axis=1)]
    weights, biases = np.array([(p.W_std, p.b_std) for p in phase("erf").line]).T
    assert np.allclose(np.interp(line[:, 1], biases, weights), line[:, 0], rtol=1e-3)
