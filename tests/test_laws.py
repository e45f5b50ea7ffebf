"""What holds for every member of the class and every network, on random ones: against quadrature, against each other,
and against sampled networks of finite width. Hypothesis draws them."""

import math
import random
import re

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

import dualcalc as dc
from dualcalc import codegen
from dualcalc.finite import monte_carlo

from . import fuzz
from .test_finite import deviation

RANDOM = st.integers(0, 2**32 - 1).map(random.Random)
MEMBERS = RANDOM.map(fuzz.expression)  # `tests/fuzz.py` says how they are drawn
COVARIANCES = RANDOM.map(fuzz.covariance)
FEW, MANY = 1, 40
TIERS = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]


def on_random(count, *strategies):
    """The decorated function, on so many examples, the same ones each time."""
    quiet = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
    quiet["phases"] = [Phase.generate]  # shrinking takes minutes; an example is short as it is
    return lambda f: settings(max_examples=count, **quiet)(given(*strategies)(f))()


def compiled(text, target="numpy"):
    """The dual and its module; an example without a closed form is passed over."""
    try:
        with fuzz.limited(30), np.errstate(all="ignore"):
            dual = dc.derive(text)
            return dual, codegen.load(codegen.emit(dual, target), target)
    except (dc.NoClosedForm, fuzz.Late):
        assume(False)


def scales(member, q11, q22):
    return [math.sqrt(x * y) for x, y in zip(*(fuzz.second_moment(member, q) for q in (q11, q22)), strict=True)]


@pytest.mark.parametrize("count", TIERS)
def test_members_are_their_quadrature(count):
    @on_random(count, MEMBERS, COVARIANCES)
    def check(member, q):
        dual, module = compiled(member.text)
        for name, true, scale in zip(
            ("k", "kdot"), fuzz.expectation(member, member, *q), scales(member, *q[1:]), strict=True
        ):
            if name == "k" or not dual.jumps:
                assert abs(getattr(module, name)(*q) - true) <= fuzz.TOLERANCE * scale + fuzz.BEYOND, (
                    name,
                    member.text,
                )


@pytest.mark.parametrize("count", TIERS)
def test_a_factor_of_t_is_one_of_the_norms(count):
    """s(A t) at q is s(t) at A^2 q, for A a parameter: kdot has the factor A^2 besides."""

    @on_random(count, MEMBERS, COVARIANCES, st.fractions("1/3", 2, max_denominator=4))
    def check(member, q, a):
        _, plain = compiled(member.text)
        dual, scaled = compiled(re.sub(r"\bt\b", "(A*t)", member.text))
        a = float(a)
        for name, factor, scale in zip(
            ("k", "kdot"), (1, a * a), scales(member, *(a * a * x for x in q[1:])), strict=True
        ):
            if name == "k" or not dual.jumps:
                values = getattr(scaled, name)(*q, A=a), factor * getattr(plain, name)(*(a * a * x for x in q))
                assert abs(values[0] - values[1]) <= 1e-10 * factor * scale + fuzz.BEYOND, (name, member.text, a)


@pytest.mark.parametrize("count", TIERS)
def test_symmetry_price_and_cauchy_schwarz(count):
    """k(q12, q11, q22) = k(q12, q22, q11); dk/dq12 = kdot; |k| is at most the root of the product on the diagonal."""

    @on_random(count, MEMBERS, COVARIANCES)
    def check(member, q):
        dual, module = compiled(member.text)
        (q12, q11, q22), (scale, slope) = q, scales(member, *q[1:])
        k = module.k(q12, q11, q22)
        assert abs(k - module.k(q12, q22, q11)) <= 1e-11 * scale + fuzz.BEYOND, member.text
        assert abs(k) <= (1 + 1e-11) * scale + fuzz.BEYOND, member.text
        if not dual.jumps:
            h = 1e-4 * math.sqrt(q11 * q22)
            steps = [module.k(q12 + i * h, q11, q22) for i in (-2, -1, 1, 2)]
            price = (steps[0] - 8 * steps[1] + 8 * steps[2] - steps[3]) / (12 * h)
            allowed = 1e-6 * slope + 1e-10 * scale / h + fuzz.BEYOND
            assert abs(price - module.kdot(q12, q11, q22)) <= allowed, member.text


@pytest.mark.slow
def test_sums_are_polarized():
    """k of f + g and of f - g together are twice k of f and twice k of g."""
    atoms = RANDOM.map(fuzz.atom)

    @on_random(MANY // 2, atoms, atoms, COVARIANCES)
    def check(f, g, q):
        texts = (f"({f.text}) + ({g.text})", f"({f.text}) - ({g.text})", f.text, g.text)
        plus, minus, one, two = (compiled(text)[1].k(*q) for text in texts)
        scale = scales(f, *q[1:])[0] + scales(g, *q[1:])[0]
        assert abs(plus + minus - 2 * one - 2 * two) <= 1e-10 * scale + fuzz.BEYOND, texts


@pytest.mark.slow
def test_precisions_in_jax():
    """float32, float64, and both mixed: the wider one counts, and float32 is right to its own precision."""

    @on_random(MANY // 2, MEMBERS, COVARIANCES)
    def check(member, q):
        module = compiled(member.text, "jax")[1]
        scale, single = scales(member, *q[1:])[0], [np.float32(x) for x in q]
        wide = module.k(*map(float, single))
        with jax.numpy_dtype_promotion("standard"):
            narrow, mixed = module.k(*single), module.k(single[0], np.float64(single[1]), single[2])
        assert (narrow.dtype, mixed.dtype) == (np.float32, np.float64) and float(mixed) == float(wide), member.text
        assert abs(float(narrow) - float(wide)) <= 1e-4 * scale + 1e-30, member.text


# Networks -----------------------------------------------------------------------------------------------------------

WIDTHS, BIASES = st.sampled_from([0.7, 1.0, 1.3]), st.sampled_from([0.0, 0.2])
ACTIVATIONS = st.sampled_from(["relu", "gelu", "erf", "sin(t)", "abs", "elu", "t*exp(-t**2/2)", "t**2/2"])
DENSE = st.builds(dc.Dense, WIDTHS, BIASES)
SIMPLE = st.builds(lambda s, dense: [dc.Activation(s), dense], ACTIVATIONS, DENSE)
BLOCKS = st.one_of(
    SIMPLE,
    SIMPLE.map(lambda layers: [dc.Residual(*layers)]),
    st.builds(lambda dense: [dense, dc.LayerNorm()], DENSE),
    SIMPLE.map(lambda layers: [dc.FanOut(2), dc.parallel(dc.serial(*layers), dc.Identity()), dc.FanInSum()]),
)
NETWORKS = st.builds(
    lambda first, blocks, s, last: dc.serial(first, *sum(blocks, []), dc.Activation(s), last),
    DENSE, st.lists(BLOCKS, min_size=0, max_size=2), ACTIVATIONS, DENSE,
)  # fmt: skip


@pytest.mark.parametrize("count", [1, pytest.param(15, marks=pytest.mark.slow)])
def test_networks_are_their_samples(count):
    """Within 6 standard errors of 64 networks of width 96, in NNGP and NTK; and in float32 and mixed precision."""
    X = np.random.default_rng(3).standard_normal((3, 4))

    @on_random(count, NETWORKS)
    def check(net):
        exact = net(X, get=("nngp", "ntk"))
        estimates = monte_carlo(net, X, get=("nngp", "ntk"), key=jax.random.key(1), width=96, samples=64)
        assert deviation(estimates, exact, 96) <= 6, net
        single = X.astype(np.float32)
        for k, e in zip(net(single, get=("nngp", "ntk")), exact, strict=True):
            assert k.dtype == np.float32 and np.abs(np.asarray(k, float) - e).max() <= 1e-5 * np.abs(e).max(), net
        mixed = net(single, single.astype(float))
        assert mixed.dtype == np.float64 and np.abs(mixed - exact.ntk).max() <= 1e-5 * np.abs(exact.ntk).max(), net
