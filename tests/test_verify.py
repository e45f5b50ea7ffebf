"""The law table holds for the catalog, and a wrong formula fails it: in the code, in the calculus, or in the record."""

import dataclasses
import math

import numpy as np
import pytest
import sympy as sp

from dualcalc import catalog, codegen, verify
from dualcalc.dual import drafted
from dualcalc.parsing import t

LAWS = {law.name for law in verify.LAWS}


@pytest.fixture(scope="module", autouse=True)
def _no_extra_folders():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(catalog.ENVIRONMENT, raising=False)
        yield


@pytest.fixture(scope="module")
def gelu() -> verify.Subject:
    return verify.subject(catalog.get("gelu"))


def failed(subject: verify.Subject) -> set[str]:
    return {result.law for result in verify.check(subject) if not result.passed}


@pytest.mark.parametrize("id", ["relu", "gelu", "exp", "normalized_gaussian", "quadratic", "rectified_monomial"])
def test_entries_pass(id):
    report = verify.verify(id)
    assert report.passed, str(report)
    assert {r.law for r in report.results} <= LAWS
    measured = {r.law for r in report.results}
    assert {"fresh", "formula", "slope", "symmetric", "psd", "finite", "float32", "declared"} - measured <= {"declared"}
    assert ("quadrature" in measured) == (id != "normalized_gaussian")  # a bare kernel has no activation
    assert ("homogeneous" in measured) == (id not in ("gelu", "exp"))
    assert ("parity" in measured) == (id == "quadratic")
    assert ("recorded" in measured) == (id not in ("normalized_gaussian", "quadratic"))


@pytest.mark.parametrize("text", ["exp(t**2)", "exp(20*t**2)", "t*exp(3*t**2)"])
def test_a_domain_of_small_norms(text):
    assert verify.verify(drafted("narrow", expression=text).entry).passed


def test_a_jump_has_no_ntk():
    report = verify.verify("sign")
    assert report.passed, str(report)
    assert "no ntk" in {r.law for r in report.results} and "slope" not in {r.law for r in report.results}


def test_no_closed_form_is_a_reason():
    report = verify.verify("tanh")
    assert report.passed and report.reason and str(report).startswith("tanh: no closed form: tanh(t)")
    claims = catalog.get("tanh").model_copy(update={"closed_form": True})
    assert not verify.verify(claims).passed
    denies = catalog.get("relu").model_copy(update={"closed_form": False})
    assert [r.law for r in verify.verify(denies).failures] == [verify.REFUSED]


def test_recorded_values_are_found():
    recorded = verify.recorded()
    of_none = set(recorded) - {name for id, e in catalog.load().items() for name in names(id)}
    assert not of_none, f"recorded, and used by no entry: {of_none}"


def names(id: str) -> list[str]:
    return [name for name, _ in verify.RECORDINGS.get(id, ((id, {}),))]


# The guards guarded -----------------------------------------------------------------------------------------------

WRONG_CODE = {
    "factor 2": lambda f: lambda *q: 2 * f(*q),
    "sign": lambda f: lambda *q: -f(*q),
    "one part in 1e9": lambda f: lambda *q: f(*q) * (1 + 1e-9),
    "arguments exchanged": lambda f: lambda c, a, b: f(a, c, b),
    "variance for deviation": lambda f: lambda c, a, b: f(c, np.sqrt(a), np.sqrt(b)),
    "one norm ignored": lambda f: lambda c, a, b: f(c, a, a),
    "branch for negative q12": lambda f: lambda c, a, b: f(np.abs(c), a, b),
    "NaN": lambda f: lambda *q: f(*q) * np.nan,
    "zero": lambda f: lambda *q: 0 * f(*q),
}


@pytest.mark.parametrize("member", ["k", "kdot"])
@pytest.mark.parametrize("wrong", WRONG_CODE)
def test_wrong_code_fails(gelu, wrong, member):
    f = getattr(gelu, member)
    spoilt = dataclasses.replace(gelu, **{member: lambda *q, **_: WRONG_CODE[wrong](f)(*q)})
    laws = failed(spoilt)
    assert {"recorded", "fresh", "quadrature"} <= laws


@pytest.mark.parametrize("old, new", [(" + ", " - "), ("angle(", "-angle("), ("root(", "("), ("q12*", "")])
def test_wrong_source_fails(gelu, old, new):
    """Every single such change in the body of a member of the generated code is noticed."""
    source = codegen.emit(gelu.dual, "numpy")
    start = source.index("def k11(")
    end = source.index("def k(")
    places = [i for i in range(start, end) if source.startswith(old, i)][:6]
    for at in places:
        module = codegen.load(source[:at] + new + source[at + len(old) :], "numpy")
        assert failed(dataclasses.replace(gelu, k=module.k, kdot=module.kdot)), source[at - 40 : at + 40]
    assert places


@pytest.mark.parametrize("activation", [-t * sp.erf(t) / 2, sp.sqrt(2) * t, sp.Max(t, 0), t * (1 + sp.erf(t / 2)) / 2])
def test_wrong_calculus_fails(gelu, activation):
    """Code and balls agree with each other and not with the activation: quadrature sees it."""
    laws = failed(dataclasses.replace(gelu, activation=activation))
    assert {"quadrature", "diagonal"} <= laws and not {"fresh", "slope", "formula"} & laws


def test_wrong_formula_for_people_fails(gelu):
    wrong = dataclasses.replace(gelu.dual)
    wrong.__dict__["k"] = gelu.dual.k + sp.Rational(1, 10**10)
    assert failed(dataclasses.replace(gelu, dual=wrong)) == {"formula"}


def test_wrong_kernel_is_not_positive(gelu):
    laws = failed(dataclasses.replace(gelu, k=lambda c, a, b: c - 0.1 * np.sqrt(a * b)))
    assert "psd" in laws
    assert "symmetric" in failed(dataclasses.replace(gelu, k=lambda c, a, b: c + a - b))


def test_wrong_expectation_in_the_record_fails():
    entry = catalog.get("relu")
    wrong = entry.expected[0].model_copy(update={"k": entry.expected[0].k + 1e-9})
    report = verify.verify(entry.model_copy(update={"expected": (wrong,)}))
    assert [r.law for r in report.failures] == ["declared"]


def test_a_crash_is_a_failure(gelu):
    def crash(*_):
        raise KeyError("lost")

    results = {r.law: r for r in verify.check(dataclasses.replace(gelu, k=crash))}
    assert results["fresh"].error == math.inf and "lost" in results["fresh"].note
    broken = catalog.get("relu").model_copy(update={"expression": "t*("})
    report = verify.verify(broken)
    assert [r.law for r in report.failures] == [verify.DERIVED] and "ParseError" in report.failures[0].note


def test_options():
    assert "float32" not in {r.law for r in verify.verify("relu", precisions=("float64",)).results}
    with pytest.raises(ValueError, match="float16"):
        verify.verify("relu", precisions=("float16",))
    entry = catalog.get("relu")
    one, same, other = (verify.subject(entry, seed=seed).points for seed in (1, 1, 2))
    assert one == same != other


def test_outside_the_repository(tmp_path, monkeypatch):
    """Without recorded values nothing passes silently."""
    verify.recorded.cache_clear()
    monkeypatch.setattr(verify, "__file__", str(tmp_path / "dualcalc" / "verify.py"))
    with pytest.raises(FileNotFoundError, match="reinstall"):
        verify.recorded()
    monkeypatch.undo()
    verify.recorded.cache_clear()


@pytest.mark.slow
def test_whole_catalog():
    seen = []
    reports = verify.verify_all(catalog.load(), seen.append, workers=2)
    assert sorted(r.id for r in seen) == sorted(catalog.load())
    assert not [str(report) for report in reports if not report.passed]
