"""Random input in small numbers, and what the large numbers of `tests/fuzz.py` found, by name."""

import subprocess
import sys

import numpy as np
import pytest
import sympy as sp
from scipy import special

import dualcalc as dc
from dualcalc import atoms, balls, codegen, gaussian
from dualcalc.parsing import ParseError, parse_activation, t

from . import fuzz

ROOT = __file__.rpartition("/tests/")[0]


@pytest.mark.parametrize("name, count", [("expressions", 4), ("pairs", 20), ("texts", 3000)])
def test_a_few(name, count):
    done = fuzz.run(name, 20, count)
    assert done.wrong == [] and sum(done.counts.values()) >= count


def test_mutants_are_seen():
    done = fuzz.run("mutants", 20, 12)
    assert len(done.wrong) <= 1, done.wrong


# The guards guarded -----------------------------------------------------------------------------------------------


def test_the_oracle_is_right():
    """Against closed forms: relu's arc-cosine kernel, and a polynomial's moment."""
    form, f, breaks, jumps = fuzz.GATES["relu"]
    relu = fuzz.Piece(form, f, (0.0,) * breaks, jumps)
    c, a, b = -0.3, 0.9, 1.7
    angle = np.arccos(c)
    k, kdot = fuzz.expectation(relu, relu, c * a * b, a * a, b * b)
    assert k == pytest.approx(a * b * (np.sin(angle) + (np.pi - angle) * c) / (2 * np.pi), abs=1e-12)
    assert kdot == pytest.approx((np.pi - angle) / (2 * np.pi), abs=1e-12)
    square = fuzz.Piece("t**2", lambda t: (t * t, 2 * t))
    assert fuzz.expectation(square, square, 0.4, 1.3, 0.7)[0] == pytest.approx(1.3 * 0.7 + 2 * 0.4**2, rel=1e-12)


def test_a_wrong_value_is_noticed(monkeypatch):
    exact = fuzz.expectation
    monkeypatch.setattr(fuzz, "expectation", lambda *a: tuple(x * (1 + 1e-6) + 1e-6 for x in exact(*a)))
    assert fuzz.run("expressions", 20, 3).wrong and fuzz.run("pairs", 20, 5).wrong


def test_execution_is_noticed(monkeypatch):
    monkeypatch.setattr(fuzz, "read_all", lambda way, sample: str(exec("1 + 1")))
    assert any("executed" in sample for sample in fuzz.run("texts", 20, 3).wrong)


# Found ------------------------------------------------------------------------------------------------------------


def test_doubtful_numbers_are_refused_without_a_warning():
    """`0.5and` after a name made Python's parser print a SyntaxWarning."""
    code = "from dualcalc.parsing import *\ntry: parse_activation('Phi0.5and')\nexcept ParseError: pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(ParseError):
        parse_activation("Phi0.5and")


@pytest.mark.parametrize("text", ["(t**2 + 2*t**3/3)*cos(t - 2/3)", "t*sin(2*t + 1/5)"])
def test_waves_with_a_phase_have_real_formulas(text):
    """Imaginary parts of conjugate pairs, which cancel, stayed in the coefficient: TypeError where it was evaluated."""
    k = dc.derive(text).k
    assert not k.has(sp.I)
    module = codegen.load(dc.emit(text, "numpy"), "numpy")
    s = sp.lambdify(t, parse_activation(text))
    made = fuzz.Piece(text, lambda x: (s(x), 0 * x))
    assert float(module.k(0.4, 1.3, 0.7)) == pytest.approx(fuzz.expectation(made, made, 0.4, 1.3, 0.7)[0], rel=1e-9)


def test_a_gate_far_in_its_tail_is_no_worse_than_its_module_says():
    """A threshold at 6.7 standard deviations: kdot of 3e-13, the small difference of larger terms."""
    dual = dc.derive("-exp(-t**2/2)*Phi(3*t/4 - 5)/4")
    module = codegen.load(dc.emit(dual, "numpy"), "numpy")
    q12, q11, q22 = -0.14965233511371911, 0.9318598521978446, 0.1183258909075049
    with balls.precision(200):
        truth, k11, k22 = (
            float(balls.value(dual.member(1, 1), balls.environment(*q)).mid())
            for q in ((q12, q11, q22), (q11, q11, q11), (q22, q22, q22))
        )
    stated = codegen.worst_error(dual, codegen.check_rows(dual)) * 2.0**-52
    off = abs(float(module.kdot(q12, q11, q22)) - truth) / np.sqrt(k11 * k22)
    assert off < min(stated, 1e-7) and truth == pytest.approx(3.2970319542373335e-13, rel=1e-12)


NO_QUOTIENT = "t**3*erf(2*t)", "(-1 - t)*exp(-t**2 + t/2)*Phi(t/2 + 5/3)"


def test_a_radical_that_divides_no_term():
    """Of a numerator with irrational coefficients `sympy.reduced` then gives no quotient at all: a ValueError."""
    f, g = (atoms.blocks(atoms.read(parse_activation(x))) for x in NO_QUOTIENT)
    terms = gaussian.expectation(f, g)[0]
    with balls.precision(200):
        got = float(balls.value(terms, balls.environment(0.3, 0.8, 0.6)).mid())
    first, second = (sp.lambdify(t, parse_activation(x), [{"erf": special.erf}, "numpy"]) for x in NO_QUOTIENT)
    pieces = [fuzz.Piece("", lambda x, s=s: (s(x), 0 * x)) for s in (first, second)]
    assert got == pytest.approx(fuzz.expectation(*pieces, 0.3, 0.8, 0.6)[0], rel=1e-10)
