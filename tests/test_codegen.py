"""Generated code: it stands alone, is right on every target and in both precisions, and so are its derivatives."""

import ast
import itertools
import json
import math
import os
import re
import subprocess
import sys
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import flint
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import dualcalc as dc
from dualcalc import balls, catalog, codegen, dual, printing

from .tiers import thinned

REFERENCE = json.loads((Path(__file__).parent / "data" / "activations.json").read_text())["activations"]
CLOSED = [id for id, entry in catalog.load().items() if entry.closed_form]
OPEN = {"tanh", "silu", "softplus"}  # outside the class, in the reference for approximations
EPS = 2.0**-52


def values_of(d, **given):
    values = {**d.defaults, **given}
    return {s: dual.exact(values[s.name], s.name) for s in d.parameters}


def truth(d, m, v12, v11, v22, **given) -> flint.arb:
    """K_mm at exact floats and exact parameters; of a bare kernel, its formula."""
    env = balls.environment(v12, v11, v22, values_of(d, **given))
    if d.activation is None:
        return balls.ball(d.kdot if m else d.k, env)
    return balls.value(d.member(m, m), env)


@lru_cache(maxsize=512)
def scale(d_source, m, v11, v22) -> float:
    """sqrt(K_mm(q11, q11, q11) K_mm(q22, q22, q22))"""
    d = dc.derive(d_source)
    with balls.precision(200):
        return float((truth(d, m, v11, v11, v11) * truth(d, m, v22, v22, v22)).sqrt().mid())


@lru_cache
def module(text, target="jax"):
    return codegen.load(dc.emit(text, target), target)


def call(f, d, *q):
    """f at the parameters' defaults."""
    return f(*q, **{s.name: float(v) for s, v in values_of(d).items()})


@pytest.fixture(autouse=True)
def _precision():
    with balls.precision(200):
        yield


# ---- A7: the emitted file stands alone ------------------------------------------------------------------------------

ALLOWED = {"jax": {"jax"}, "numpy": {"numpy"}, "numba": {"numba", "numpy", "math"}, "torch": {"torch"}}


@pytest.mark.slow
@pytest.mark.parametrize("id", CLOSED)
def test_emitted_text(id, monkeypatch):
    """Only the target is imported, every free name is defined, and the docstring says what it must."""
    d = dc.derive(id)
    rows = codegen.check_rows(d)
    monkeypatch.setattr(codegen, "check_rows", lambda _: rows)  # they do not depend on the target
    for target, allowed in ALLOWED.items():
        text = dc.emit(d, target)
        tree = ast.parse(text)
        imported = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
        assert imported <= allowed, (target, imported)
        assert "dualcalc" not in text.split('"""', 2)[2] and "sympy" not in text
        assert not {"eval", "exec", "__import__"} & {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        doc = " ".join(ast.get_docstring(tree).split())
        assert f"domain: {d.domain}" in doc and f"source: catalog {id}" in doc and "usage: k(0.4, 1.3, 0.7" in doc
        assert "error:" in doc and {"k", "kdot"} <= {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
        compile(text, id, "exec")


ALONE = """
import runpy, sys
for name in ("dualcalc", "sympy", "flint", "scipy.special", "numba"):
    sys.modules[name] = None  # importing it raises
module = runpy.run_path(sys.argv[1])
import jax, jax.numpy as jnp
k, kdot, x = module["k"], module["kdot"], jnp.linspace(-0.9, 0.9, 7)
one = jnp.ones(7)
a = jax.jit(k)(x, one, one)
b = jax.vmap(k)(x, one, one)
c = jax.vmap(jax.grad(k))(x, one, one)
assert jnp.allclose(a, b, atol=1e-6) and jnp.allclose(c, kdot(x, one, one), atol=1e-6), (a, b, c)
assert "dualcalc" not in {m.split(".")[0] for m in sys.modules if sys.modules[m] is not None}
print("fine", k(0.4, 1.3, 0.7).dtype)
"""


def python(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_runs_with_jax_alone(tmp_path):
    file = tmp_path / "gelu.py"
    file.write_text(dc.emit("gelu"))
    assert python("-I", "-c", ALONE, str(file)) == "fine float32\n"  # and JAX's precision is left as it was


@pytest.mark.parametrize("id, target", [("gelu", "jax"), ("sign", "jax"), ("sin", "numpy"), ("hardtanh", "numpy")])
def test_self_check(id, target, tmp_path):
    file = tmp_path / "module.py"
    file.write_text(dc.emit(id, target))
    assert "largest relative error" in python("-I", str(file))


def test_self_check_fails_on_a_wrong_formula(tmp_path):
    text = dc.emit("relu", "numpy")
    assert "0.15915494309189535*" in text
    file = tmp_path / "module.py"
    file.write_text(text.replace("0.15915494309189535*", "0.15915494309089535*"))
    done = subprocess.run([sys.executable, "-I", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "largest relative error" in done.stdout


@pytest.mark.parametrize("ids", thinned(["relu sin", "gelu hard_swish elu gabor"], {"gelu hard_swish elu gabor"}))
def test_reproducible_to_the_byte(ids):
    code = (
        "import dualcalc as dc, hashlib\n"
        f"for id in {ids.split()}:\n"
        "    for target in ('jax', 'numba', 'latex'):\n"
        "        print(id, target, hashlib.sha256(dc.emit(id, target).encode()).hexdigest())\n"
    )
    assert python("-c", code, PYTHONHASHSEED="1") == python("-c", code, PYTHONHASHSEED="2")


# ---- A1: float64 and float32 against the reference ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", thinned([name for name in REFERENCE if name not in OPEN], {"elu", "hardtanh", "gabor"})
)
def test_reference(name):
    record = REFERENCE[name]
    d = dc.derive(record["expr"], **record["params"])
    fns = dc.compile(d)
    assert fns.method == "closed form" and fns.error_bound.k < 1e-12
    rows = np.array([[np.nan if x is None else x for x in row] for row in record["rows"]])
    for m, f in ((0, fns.k), (1, fns.kdot)):
        if m and d.jumps:
            with pytest.raises(dc.NoClosedForm, match="delta"):
                f(*rows[0, :3])
            continue
        double = np.asarray(f(*rows.T[:3]))
        assert np.all(np.abs(double - rows[:, 3 + m]) <= 1e-12 * np.sqrt(rows[:, 5 + 2 * m] * rows[:, 6 + 2 * m]))
        short = rows[:, :3].astype(np.float32)
        single = np.asarray(f(*short.T))
        assert single.dtype == np.float32
        for got, q in zip(single, short.astype(float), strict=True):
            size = (truth(d, m, q[1], q[1], q[1]) * truth(d, m, q[2], q[2], q[2])).sqrt()
            assert abs(balls.exact(float(got)) - truth(d, m, *q)) <= 2e-6 * size, q


FAR_OUT = [("Max(t - 16, 0)", 1.0), ("Heaviside(t - 16)", 1.0), ("hardtanh", 2.0**-8)]


@pytest.mark.parametrize("text, norm", thinned(FAR_OUT, FAR_OUT[2:]))
def test_thresholds_far_out(text, norm):
    """16 standard deviations: k11 of the first is about 1e-61, right to 9 digits (see the README); nothing is NaN, and
    float32 may say zero."""
    d, f = dc.derive(text), dc.compile(text)
    for c, m in itertools.product((0.0, 0.5, -0.5, 0.999, -0.999, 1.0, -1.0), (0, 1)):
        if m and d.jumps:
            continue
        q = (c * norm, norm, norm)
        got, true = float((f.k, f.kdot)[m](*q)), truth(d, m, *q)
        assert abs(balls.exact(got) - true) <= 1e-9 * truth(d, m, norm, norm, norm) + 1e-300, (c, m)
        assert not math.isnan((f.k, f.kdot)[m](*map(np.float32, q)))
    if text.startswith("Max"):
        assert 1e-62 < float(f.k(1.0, 1.0, 1.0)) < 1e-59


# ---- targets against each other -------------------------------------------------------------------------------------

GRID = [
    (c * a * b, a * a, b * b) for a, b in ((1, 1), (0.3, 2), (1.7, 0.9)) for c in (-1, -0.99, -0.4, 0, 0.6, 0.999, 1)
]


def agree(text, target, convert=np.asarray):
    d = dc.derive(text)
    growth = float(d.growth.subs(codegen.default_values(d))) if d.parameters else float(d.growth)
    grid = np.array(GRID) * (1 if growth <= 0 else 0.05 / growth)
    for m in (0, 1):
        if m and d.jumps:
            with pytest.raises((ValueError, dc.NoClosedForm), match="delta"):
                call(module(text, target).kdot, d, *map(convert, grid.T))
            continue
        ours, theirs = (
            np.asarray(call((mod.k, mod.kdot)[m], d, *map(turn, grid.T)))
            for mod, turn in ((module(text), jnp.asarray), (module(text, target), convert))
        )
        size = np.array([scale(text, m, *row[1:]) for row in grid])
        assert np.all(np.abs(ours - theirs) <= 1e-12 * size), (text, m)


SOME = ["relu", "gelu", "sin", "hermite", "abrelu", "sign", "exp(-Abs(t))", "cos(t**2)"]


@pytest.mark.parametrize(
    "text", thinned([*SOME, "elu", "gabor", "t2_erf", "normalized_gaussian", "exp(t**2)"], {"elu", "exp(-Abs(t))"})
)
def test_numpy_agrees(text):
    agree(text, "numpy")


@pytest.mark.parametrize("text", thinned(["relu", "gelu", "elu", "sin", "sign"], {"gelu", "elu"}))
def test_numba_agrees(text):
    agree(text, "numba")


@pytest.mark.torch
@pytest.mark.parametrize("text", [*SOME, "elu", "gabor", "hardtanh"])
def test_torch_agrees(text):
    torch = pytest.importorskip("torch")
    agree(text, "torch", torch.as_tensor)
    assert module(text, "torch").k(torch.tensor([0.5]), torch.tensor([1.0]), torch.tensor([1.0])).dtype == torch.float32


def test_latex():
    text = dc.emit("gelu", "latex")
    assert text.count(r"\begin{align}") == text.count(r"\end{align}") == 1
    assert r"k &= " in text and r"\dot{k} &= " in text and r"\operatorname{asin}" in text and r"q_{12}" in text
    assert text.count("{") == text.count("}") and "domain: all q >= 0" in text
    assert "% kdot: the activation jumps" in dc.emit("sign", "latex") and r"\dot{k}" not in dc.emit("sign", "latex")
    with pytest.raises(ValueError, match="fortran.*jax"):
        dc.emit("relu", "fortran")


# ---- A3: derivatives ------------------------------------------------------------------------------------------------

ORDINARY = [(0.375, 1.25, 0.75), (-0.5, 0.875, 1.5), (0.75, 1.0, 1.125)]  # exact in binary
SINGULAR = [(a * b * c, a * a, b * b) for a, b in ((1, 1), (2, 0.5), (0.25, 0.25)) for c in (1, -1)]
SINGULAR += [(0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
DIFFERENTIATED = {  # id: parameters at which it is differentiated
    "relu": {},
    "erf": {},
    "gelu": {},
    "elu": {},
    "sin": {"A": 1.25, "B": 0.375},
    "gaussian": {"A": 0.75},
    "gabor": {},
    "hardtanh": {},
    "relu6": {},
    "abrelu": {"A": 0.25, "B": 1.125},
    "softshrink": {"A": 0.5},
    "normalized_gaussian": {"A": 0.75},
}


@lru_cache
def derivatives(id, m):
    """The jitted gradient and Hessian of K_mm in (q12, q11, q22, *parameters), over rows."""
    names = list(DIFFERENTIATED[id])
    f = getattr(module(id), ("k", "kdot")[m])

    def scalar(x):
        return f(x[0], x[1], x[2], **{n: x[3 + i] for i, n in enumerate(names)})

    return jax.jit(jax.vmap(lambda x: (jax.grad(scalar)(x), jax.hessian(scalar)(x))))


def difference_table(id, m, point):
    """Gradient and Hessian of K_mm by central differences in 200-bit balls: with h = 2^-26 to about 1e-15."""
    d, names, h = dc.derive(id), list(DIFFERENTIATED[id]), 2.0**-26

    def f(*x):
        return truth(d, m, *x[:3], **{n: Fraction(v) for n, v in zip(names, x[3:], strict=True)})

    def at(*moves):
        x = list(point)
        for i, by in moves:
            x[i] += by
        return f(*x)

    n = len(point)
    slopes = [float((at((i, h)) - at((i, -h))).mid()) / (2 * h) for i in range(n)]
    curvatures = np.zeros((n, n))
    for i, j in itertools.combinations_with_replacement(range(n), 2):
        corners = [a * b * at((i, a * h), (j, b * h)) for a in (1, -1) for b in (1, -1)]
        curvatures[i, j] = curvatures[j, i] = float(sum(corners, flint.arb(0)).mid()) / (4 * h * h)
    return np.array(slopes), curvatures


QUICK = {"relu"}  # the others: minutes of XLA compilation


@pytest.mark.parametrize("id", thinned(DIFFERENTIATED, set(DIFFERENTIATED) - QUICK))
def test_derivatives(id):
    parameters = tuple(DIFFERENTIATED[id].values())
    for m in (0, 1):
        rows = np.array([(*q, *parameters) for q in (*ORDINARY, *SINGULAR)])
        for dtype in (np.float64, np.float32):
            first, second = (np.asarray(x) for x in derivatives(id, m)(jnp.asarray(rows, dtype)))
            bad = [
                tuple(r) for r, a, b in zip(rows, first, second, strict=True) if np.isnan(a).any() or np.isnan(b).any()
            ]
            assert not bad, f"NaN in {'k' if m == 0 else 'kdot'}, {dtype.__name__}, at {bad}"
            tolerance = 1e-10 if dtype is np.float64 else 2e-5
            for row, a, b in zip(rows[:3], first, second, strict=False):
                slopes, curvatures = difference_table(id, m, tuple(row))
                assert np.abs(a - slopes).max() <= tolerance * max(1, np.abs(slopes).max()), (m, dtype, row)
                assert np.abs(b - curvatures).max() <= tolerance * max(1, np.abs(curvatures).max()), (m, dtype, row)


def test_the_difference_table_sees_a_wrong_slope():
    slopes, _ = difference_table("erf", 0, ORDINARY[0])
    wrong, _ = difference_table("erf", 1, ORDINARY[0])
    assert np.abs(slopes - wrong).max() > 1e-3


def test_price_on_the_diagonal():
    """dk/dq12 is kdot where k itself is not smooth."""
    f = module("gelu")
    for q in SINGULAR:
        q = [float(x) for x in q]
        assert float(jax.grad(f.k)(*q)) == pytest.approx(float(f.kdot(*q)), abs=1e-15)


# ---- calling conventions --------------------------------------------------------------------------------------------


def test_shapes_and_types():
    f = dc.compile("gelu")
    column, row = jnp.linspace(0.5, 2.0, 4)[:, None], jnp.linspace(0.5, 2.0, 3)[None, :]
    table = f.k(0.25, column, row)
    assert table.shape == (4, 3) and table.dtype == jnp.float64
    assert float(table[1, 2]) == float(f.k(0.25, column[1, 0], row[0, 2]))
    assert f.k(jnp.zeros((2, 1, 3)), 1, jnp.ones(3)).shape == (2, 1, 3) and f.k(0.5, 1, 1).shape == ()
    assert f.k(np.array([0, 1]), np.array([1, 1]), np.array([1, 1])).dtype == jnp.float64
    assert f.k(np.float32(0.5), np.float32(1), np.float32(1)).dtype == jnp.float32
    assert f.k(jnp.float32(0.5), 1.0, 1.0).dtype == jnp.float32  # a Python number has no precision of its own
    half = f.k(*(jnp.asarray(x, jnp.float16) for x in (0.5, 1.0, 1.0)))
    assert half.dtype == jnp.float32 and float(half) == pytest.approx(float(f.k(0.5, 1.0, 1.0)), rel=1e-6)
    assert f.k(jnp.zeros((0, 3)), 1.0, 1.0).shape == (0, 3)
    assert float(f.k(0.5, 1.0, 2.0)) == float(f.k(0.5, 2.0, 1.0))
    with pytest.raises((ValueError, TypeError)):
        f.k(jnp.zeros(3), jnp.ones(4), 1.0)


def test_parameters_are_arguments():
    f = dc.compile("sin")
    assert float(f.k(0.5, 1.0, 1.0)) == pytest.approx(float(dc.compile("sin", A=1, B=0).k(0.5, 1.0, 1.0)), abs=1e-15)
    given = float(dc.compile("sin", A=1.3, B=0.4).k(0.5, 1.0, 1.0))
    assert float(f.k(0.5, 1.0, 1.0, A=1.3, B=0.4)) == pytest.approx(given, abs=1e-15)
    assert float(jax.grad(lambda a: f.k(0.5, 1.0, 1.0, A=a))(1.3)) != 0
    swept = jax.vmap(lambda a: f.k(0.5, 1.0, 1.0, A=a))(jnp.linspace(0.5, 2, 5))
    assert swept.shape == (5,) and len(set(swept.tolist())) == 5
    with pytest.raises(TypeError):
        f.k(0.5, 1.0, 1.0, C=1.0)
    unset = dc.compile("sin(W*t)")
    with pytest.raises(TypeError, match="W"):
        unset.k(0.5, 1.0, 1.0)
    assert float(unset.k(0.5, 1.0, 1.0, W=1.0)) == pytest.approx(float(f.k(0.5, 1.0, 1.0)), abs=1e-15)


@pytest.mark.parametrize("text", ["t + erfc(A)", "Max(A, 1)*t", "t*Min(A, B, 2)", "Heaviside(A)*t"])
def test_functions_of_parameters_alone(text):
    f, values = module(text, "numpy"), {s.name: 1.5 if s.name == "A" else 0.5 for s in dc.derive(text).parameters}
    given = codegen.load(dc.emit(text, "numpy", **values), "numpy")
    assert float(f.k(0.3, 0.9, 0.7, **values)) == pytest.approx(float(given.k(0.3, 0.9, 0.7)), rel=1e-14)


EITHER_SIGN = {
    "exp(-t**2/W)": (-8, 3),
    "exp(-t**2/(W + 1))*sin(t/W)": (-9, 3),
    "t**2*exp(-t**2/W**3)": (-2, 2),
    "exp(t - (t + 1)**2/W)": (-9, 2),
    "Phi(t/W)*exp(t)": (-2, 2),
    "t*erf(t/(W + 1))": (-3, 3),
    "erf(W*t)*exp(-t**2/W**2)": (-2, 2),
    "sin(t**2/W)": (-2, 2),
}


@pytest.mark.parametrize("text", EITHER_SIGN)
def test_parameters_of_either_sign(text):
    """The formula with a symbol is that with its value: what leaves a root keeps its sign."""
    dual, f, q = (
        dc.derive(text),
        module(text, "numpy"),
        (np.array([0.3, -0.5]), np.array([0.9, 0.8]), np.array([0.7, 1.0])),
    )
    for value in EITHER_SIGN[text]:
        given = codegen.load(dc.emit(text, "numpy", W=value), "numpy")
        assert f.k(*q, W=value) == pytest.approx(given.k(*q), rel=1e-12)
        assert f.kdot(*q, W=value) == pytest.approx(given.kdot(*q), rel=1e-12)
        at = dict(zip(dc.symbols, (0.9, 0.3, 0.7), strict=True)) | dict.fromkeys(dual.parameters, value)
        assert float(dual.k.subs(at)) == pytest.approx(float(given.k(*q)[0]), rel=1e-12)


@pytest.mark.parametrize("text", thinned(["relu", "gelu", "hardtanh", "normalized_gaussian"], {"gelu", "hardtanh"}))
def test_what_is_no_covariance(text):
    f = dc.compile(text)
    for q in ((1.0001, 1.0, 1.0), (-1.0001, 1.0, 1.0), (0.0, -1.0, 1.0), (0.5, 1.0, 0.0)):
        with pytest.raises(ValueError, match="covariance"):
            f.k(*q)
        with pytest.raises(ValueError, match="covariance"):
            f.kdot(jnp.array([0.0, q[0]]), *map(jnp.asarray, q[1:]))
        assert math.isnan(jax.jit(f.k)(*q))
    for eps, dtype in ((2.0**-52, np.float64), (2.0**-23, np.float32)):
        one = dtype(1)
        for sign in (one, -one):
            edge = float(f.k(sign, one, one))
            over = float(f.k(sign * dtype(1 + 4 * eps), one, one))
            assert over == pytest.approx(edge, rel=4 * eps, abs=4 * eps)
            assert not np.isnan(jax.grad(f.k)(sign * dtype(1 + 2 * eps), one, one))


def test_nan_passes_through():
    f = dc.compile("relu")
    assert math.isnan(f.k(math.nan, 1.0, 1.0)) and math.isnan(f.kdot(0.5, math.nan, 1.0))


def test_outside_the_domain():
    f = dc.compile("exp(t**2)")
    for m, (member, q) in enumerate(((f.k, (0.05, 0.125, 0.2)), (f.kdot, (0.05, 0.125, 0.2)))):
        true = truth(dc.derive("exp(t**2)"), m, *q)
        assert abs(balls.exact(float(member(*q))) - true) <= 8 * EPS * scale("exp(t**2)", m, *q[1:])
        for outside in ((0.1, 0.3, 0.1), (0.1, 0.1, 0.3), (0.0, 5.0, 5.0), (0.25, 0.25, 0.25)):
            assert float(member(*outside)) == math.inf
            assert float(jax.jit(member)(*outside)) == math.inf
    assert np.isinf(module("exp(t**2)", "numpy").k(0.0, np.array([0.3, 1.0]), 0.1)).all()


@pytest.mark.parametrize("text", thinned(["sign", "sign(t)", "step", "hardshrink"], {"hardshrink"}))
def test_no_kdot_of_a_jump(text):
    f = dc.compile(text)
    with pytest.raises(dc.NoClosedForm, match="delta"):
        f.kdot(0.5, 1.0, 1.0)
    assert np.isfinite(f.k(jnp.array([0.5, 1.0, -1.0]), 1.0, 1.0)).all()
    assert np.isfinite(float(jax.grad(f.k)(0.5, 1.0, 1.0)))


def test_compile_refuses():
    with pytest.raises(dc.NoClosedForm, match="Way out"):
        dc.emit("erf(t)*Heaviside(t)", "latex")
    with pytest.raises(ValueError, match="relu"):
        dc.compile("rellu")


# ---- stability: every rewriting, with it and without it -------------------------------------------------------------


def worst(text, m, points) -> float:
    """The largest error in eps of freshly emitted NumPy code at the points, over the scale."""
    d = dc.derive(text)
    f = codegen.load(dc.emit(d, "numpy"), "numpy")
    q = np.array(points).T
    got = np.broadcast_to(call((f.k, f.kdot)[m], d, *q), q.shape[1])
    sizes = [scale(text, m, row[1], row[2]) for row in points]
    return max(
        float(abs(balls.exact(float(g)) - truth(d, m, *row))) / s / EPS if np.isfinite(g) else math.inf
        for g, row, s in zip(got, points, sizes, strict=True)
    )


def grid(norms, cosines):
    return [(c * a * b, a * a, b * b) for a, b in norms for c in cosines]


REWRITTEN = {  # name: (activation, member, points, error with it, error without it), in eps
    "pair exponentials": ("sin(t)", 0, grid([(1e-3, 1e-3), (1e-3, 0.1)], [0.5, -0.9, 0.99]), 4, 1e5),
    "gap": ("hard_swish", 0, grid([(1, 1), (3, 3)], [1 - 1e-6, 1 - 1e-9, 1 - 1e-12]), 16, 1e3),
}


def test_every_rewriting_is_tested():
    assert set(REWRITTEN) == {r.name for r in printing.REWRITES}
    assert all(r.why for r in printing.REWRITES)


@pytest.mark.parametrize("name", REWRITTEN)
def test_rewriting(name, monkeypatch):
    text, m, points, with_it, without_it = REWRITTEN[name]
    assert worst(text, m, points) <= with_it
    monkeypatch.setattr(printing, "REWRITES", tuple(r for r in printing.REWRITES if r.name != name))
    assert worst(text, m, points) >= without_it


def test_small_norms_are_integrated(monkeypatch):
    """MATH.md 3.9: the closed form of ELU cancels at a = 1e-3."""
    points = grid([(1e-3, 1e-3), (1e-3, 1), (0.1, 1e-3)], [0, 0.5, -0.5, 1 - 1e-6, 1, -1])
    for text in ("elu", "selu"):
        assert worst(text, 0, points) <= 8
    monkeypatch.setattr(codegen, "needs_integral", lambda *_: False)
    assert worst("elu", 0, points) >= 1e4


@pytest.mark.slow
def test_small_norms_in_jax():
    d, f = dc.derive("elu"), dc.compile("elu")
    for dtype, eps in ((np.float64, 2.0**-52), (np.float32, 2.0**-23)):
        for row in grid([(1e-3, 1e-3), (1e-3, 1)], [0, 0.5, -0.5, 1, -1]):
            q = [dtype(x) for x in row]
            true, size = truth(d, 0, *q), scale("elu", 0, float(q[1]), float(q[2]))
            assert abs(balls.exact(float(f.k(*q))) - true) <= 8 * eps * size, row


def test_determinant_without_cancellation():
    """The naive way, the printed formula in floating point, loses what generated code keeps."""
    points = grid([(1, 1), (3, 0.5)], [1 - 1e-9, 1 - 1e-12, -1 + 1e-9])
    d = dc.derive("relu")
    naive = sp.lambdify(sorted(d.kdot.free_symbols, key=str), d.kdot, "numpy")  # q11, q12, q22
    assert worst("relu", 1, points) <= 2
    lost = max(abs(float(balls.exact(float(naive(q[1], q[0], q[2]))) - truth(d, 1, *q))) for q in points)
    assert lost > 1e3 * EPS


def test_the_recorded_error_is_honest():
    """The docstring's figure is a power of two, at least the error at the recorded points."""
    d = dc.derive("hard_swish")
    recorded = codegen.worst_error(d, codegen.check_rows(d))
    assert math.log2(recorded) == int(math.log2(recorded)) and f"at most {recorded:g} eps" in dc.emit(d, "numpy")
    assert worst("hard_swish", 0, codegen.CHECKS) <= recorded * 1.01


# ---- parameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", thinned(["jax", "numpy", "numba"], {"numpy", "numba"}))
def test_names_of_parameters(target, monkeypatch):
    """Any name that the module itself uses gives the same values, or is refused."""
    monkeypatch.setattr(codegen, "check_rows", lambda _: [])
    text, point = "A*t*exp(-A**2*t**2)", (0.4, 1.3, 0.7)
    source = dc.emit(text, target)
    truth, names = codegen.load(source, target).k(*point, A=1.7), set(re.findall(r"[A-Za-z]\w*", source)) - {"t", "e"}
    assert {"Delta", "xp", "k00", "x0", "q11", "accepted"} <= names
    if target != "numpy":  # where a call compiles for seconds
        names = {"Delta", "K00", "x0", "accepted"}
    refused = set()
    for name in sorted(names):
        try:
            given = dc.emit(text.replace("A", name), target)
        except ValueError:
            refused.add(name)
            continue
        assert codegen.load(given, target).k(*point, **{name: 1.7}) == pytest.approx(float(truth), rel=1e-6), name
    assert "accepted" in refused and not refused & {"Delta", "xp", "k00", "K00", "x0", "angle", "root"}


def test_a_positive_symbol_named_as_the_determinant(monkeypatch):
    monkeypatch.setattr(codegen, "check_rows", lambda _: [])
    t, point = sp.Symbol("t", real=True), (0.4, 1.3, 0.7)
    one, other = (sp.Max(t, sp.Symbol(name, positive=True)) for name in ("Delta", "A"))
    k = [codegen.load(dc.emit(s, "numpy"), "numpy").k for s in (one, other)]
    assert k[0](*point, Delta=1.7) == k[1](*point, A=1.7)


@pytest.mark.parametrize("target", thinned(["jax", "numpy", "numba"], {"numba"}))
def test_signs_of_parameters_are_checked_at_the_call(target):
    k = module("celu", target).k
    assert np.isfinite(k(0.4, 1.3, 0.7, A=2.0))
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="A = .* came; expected a positive number"):
            k(0.4, 1.3, 0.7, A=value)
    if target == "jax":
        assert np.isfinite(jax.jit(k)(0.4, 1.3, 0.7, A=1.0)) and jax.jit(k)(0.4, 1.3, 0.7, A=-1.0).shape == ()


@pytest.mark.parametrize(
    "given", [{"norms": (1,)}, {"norms": "12"}, {"norms": (1, math.inf)}, {"norms": (2, 1)}, {"tol": "a"}, {"tol": 1}]
)
def test_tolerance_and_norms_are_checked_always(given):
    for activation in ("relu", "tanh"):
        for refused in (lambda: dc.compile(activation, **given), lambda: dc.emit(activation, **given)):  # noqa: B023
            with pytest.raises(ValueError, match="came; expected a tol from 1e-12 to 0.1, and norms"):
                refused()


@pytest.mark.parametrize(
    "given, hint", [({"target": "numpy"}, "dc.emit"), ({"norm": (1, 2)}, "'norms'"), ({"tols": 1}, "'tol'")]
)
def test_misspelt_keywords(given, hint):
    for activation in ("relu", "tanh(t)"):
        with pytest.raises(ValueError, match=f"no parameter.*{hint}"):
            dc.compile(activation, **given)


@pytest.mark.parametrize("expr", ["1/t", "log(t)", "sqrt(t)", "tan(t)", "1/(t - 1)"])
def test_what_is_not_finite_and_real_is_refused(expr):
    s = sp.sympify(expr)
    for refused in (dc.compile, dc.hermite):
        with pytest.raises(ValueError, match="expected a function that is finite and real for all real t"):
            refused(s)


def test_a_rate_of_unknown_sign():
    """exp(-A t^2) exists for A > -1/(4 q): the condition is one on each rate, whatever the sign of A."""
    fns = dc.compile("exp(-A*t**2)")
    for A in (1.0, -0.5):
        fixed = dc.compile("exp(-A*t**2)", A=A)
        assert float(fns.k(0.1, 0.2, 0.3, A=A)) == pytest.approx(float(fixed.k(0.1, 0.2, 0.3)), rel=1e-15)
    assert float(fns.k(0.1, 2.0, 0.3, A=-0.5)) == float("inf")
