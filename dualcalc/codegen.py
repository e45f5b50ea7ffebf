"""From terms, or from coefficient tables, to code that stands alone: `emit` and `compile`.

The bridge between the symbolic half and the numeric one. A generated module imports nothing but its target; it carries
the source of the runtime primitives that it uses, the members K_mn of Price's family, and `k` and `kdot` on top.
Numerics (docs/code.md): Delta by an error-free product, guarded quotients where a norm or Delta can vanish,
`exp(..) Phi(..)` and `exp(..) Phi2(..)` in log space, sinh for paired exponentials, and kdot integrated where the
closed form of k cancels at small norms. An activation outside the closed class is printed from the tables of
`approximate.py`, with the same public functions.
"""

from __future__ import annotations

import builtins
import math
import re
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import sympy as sp

from . import approximate, balls, expansions, pieces, quadrature, runtime
from .atoms import NoClosedForm
from .dual import Dual, derive, exact, resolve
from .parsing import check_name, q11, q12, q22
from .printing import body, guard, inner, literal, statements, text
from .rational import Delta, longer

TARGETS = ("jax", "numpy", "numba", "torch", "latex")
TOL, NORMS = 1e-6, (1e-3, 10.0)
"""Of an approximation, where nothing else is asked: error over sqrt(k11 k22), and the range of the norms sqrt(q)."""

# ---- members --------------------------------------------------------------------------------------------------------


def needs_integral(dual: Dual, order: int) -> bool:
    """Whether the blocks of s^(order) cancel at the origin, so that the closed form loses digits at small norms."""
    s = dual.derivative(order)
    if any(b.gate and b.gate.kind == "delta" for b in (*s, *dual.derivative(order + 1))):
        return False
    paired = all(b.gate is None and b.beta != 0 and (b.alpha != 0 or len(b.poly) == 1) for b in s)
    if paired and len({b.beta**2 for b in s}) == 1:
        return False  # one frequency: the sinh rewrite is exact
    sums = [_near_origin(s, x) for x in (1e-3, -1e-3)]
    size = max(sum(map(abs, values)) for values in sums)
    return bool(max(abs(sum(values)) for values in sums) < 0.05 * size)


def _near_origin(s, x: float) -> list[complex]:
    """The values of the blocks at x."""
    values = []
    for b in s:
        g = b.gate
        if g is not None and g.kind == "step" and ((x - _number(g.at)) * _number(g.kappa)).real <= 0:
            continue
        poly: complex = sum(_number(c) * x**n for n, c in enumerate(b.poly))
        value = poly * np.exp(_number(b.alpha) * x * x + _number(b.beta) * x)
        if g is not None and g.kind == "erf":
            value *= math.erf((_number(g.kappa) * x + _number(g.at)).real)
        elif g is not None and g.kind == "sign":
            value *= math.copysign(1.0, x)
        values.append(value)
    return values


def _number(e: sp.Expr) -> complex:
    """A constant as a complex number, its parameters at 1."""
    value = complex(e.subs(dict.fromkeys(e.free_symbols, sp.Integer(1))))
    return value if value.imag else complex(value.real)


# ---- emission -------------------------------------------------------------------------------------------------------

# Where the error of generated code is recorded: (q12, q11, q22), scaled into the domain where it is bounded.
CHECKS = ((0.4, 1.3, 0.7), (-0.9, 0.9, 1.0), (0.09, 0.01, 0.9), (2.5, 2.5, 2.5), (0.999, 1.0, 1.0))


@dataclass(frozen=True)
class Members:
    """The members of one dual as functions `kmn(q12, q11, q22, Delta, *parameters)` for one target."""

    dual: Dual
    target: str

    @property
    def parameters(self) -> str:
        return "".join(f", {inner(s)}" for s in self.dual.parameters)

    def function(self, name, lines, result, note, arguments="q12, q11, q22, Delta") -> str:
        """One function's text; outside the domain of norms it is inf."""
        if self.dual.growth != 0:
            limits = [text(inner(4 * rate)) for rate in sp.Max.make_args(self.dual.growth) if rate != 0]
            inside = " & ".join(f"({limit}*{q} < 1.0)" for limit in limits for q in ("q11", "q22") if q in arguments)
            result = f"where({inside}, {result}, xp.inf)"
        head = '@numba.njit(error_model="numpy")\n' if self.target == "numba" else ""
        if not re.search(r"\bq(11|12|22)?\b|\b[xp]\d+\b", result):
            result = f"filled({result}, {arguments.split(',')[0]})"
        rows = [f'    """{note}"""', *(f"    {line}" for line in lines), f"    return {result}"]
        return "\n".join([f"{head}def {name}({arguments}{self.parameters}):", *rows])

    def texts(self) -> list[str]:
        """All functions, in an order of definition."""
        if self.dual.activation is None:
            pairs = (("k00", self.dual.k, "the kernel"), ("k11", self.dual.kdot, "dk/dq12"))
            return [
                self.function(name, *statements(guard(_with_delta(inner(e))), False), note) for name, e, note in pairs
            ]
        # those that others call first; by Price, JAX needs K22, K31, K20 for the derivatives
        needed = [(2, 2), (3, 1), (2, 0)] if self.target == "jax" else []
        if not needed and needs_integral(self.dual, 1):
            needed = [(2, 2)]
        return [x for m, n in (*needed, (1, 1), (0, 0)) for x in self.member(m, n)]

    def member(self, m: int, n: int) -> list[str]:
        """K_mn, in two forms where the closed one cancels at small norms."""
        name, note, stack = f"k{m}{n}", f"E[{_prime(m)}(u) {_prime(n)}(v)]", self.target == "jax"
        lines = body(self.dual.member(m, n), stack)
        if m != n or m > 1 or not needs_integral(self.dual, m):
            return [self.function(name, *lines, note)]
        p, slope, start = self.parameters, f"k{m + 1}{n + 1}", text(inner(_at_origin(self.dual, m)))
        curvature = body(self.dual.mean(m + 2), False)
        mean = f"mean_by_norm({name}_curvature, {start}, {name}_mean_closed, q11{p})"
        small = f"integrated({slope}, {name}_mean, q12, q11, q22, Delta{p})"
        oscillates = any(b.beta.is_imaginary and b.beta != 0 for b in self.dual.derivative(m))
        tiny = 0.0 if oscillates else 0.05  # at norms of 30 the integrand oscillates too fast for the rule
        chosen = f"by_norm({tiny}, {name}_small, {name}_closed, q12, q11, q22, Delta{p})"
        return [
            self.function(f"{name}_closed", *lines, f"{note}, closed form"),
            self.function(f"{name}_curvature", *curvature, f"E[{_prime(m + 2)}(u)]", "q11"),
            self.function(
                f"{name}_mean_closed", *body(self.dual.mean(m), False), f"E[{_prime(m)}(u)], closed form", "q11"
            ),
            self.function(f"{name}_mean", [], mean, f"E[{_prime(m)}(u)]", "q11"),
            self.function(f"{name}_small", [], small, f"{note}, {slope} integrated: the closed form cancels here"),
            self.function(name, [], chosen, note),
        ]


def _prime(order: int) -> str:
    return "s" + "'" * order


def _at_origin(dual: Dual, order: int) -> sp.Expr:
    """s^(order)(0) of an activation that is continuous there."""
    total = sp.Integer(0)
    for b in dual.derivative(order):
        g = b.gate
        if g is None or (g.kind == "step" and (g.at == 0 and g.kappa == 1 or (g.at * g.kappa).is_negative)):
            total += b.poly[0]
        elif g.kind == "erf":
            total += b.poly[0] * sp.erf(g.at)
    return total


def _with_delta(e: sp.Expr) -> sp.Expr:
    """q11 q22 - q12^2 as Delta, in a kernel that a user wrote."""
    return e.replace(lambda x: x.is_Add and sp.expand(x - (q11 * q22 - q12**2)) == 0, lambda _: Delta)


def refusal(dual: Dual) -> str:
    """Why the NTK has no value, or an empty text."""
    try:
        dual.require_ntk()
    except NoClosedForm as reason:
        return str(reason)
    return ""


SIGNS = {"positive": "> 0", "negative": "< 0", "nonnegative": ">= 0", "nonpositive": "<= 0", "nonzero": "!= 0"}
USED = ("in_rank", "inputs", "parameter", "required", "accepted", "flagged_K00", "flagged_K11", "ValueError")
"""Names in the bodies of `k` and `kdot`, which a parameter would hide."""


def _sign(symbol: sp.Symbol) -> list[str]:
    """The strongest sign that the formulas assume of a parameter, if any."""
    return [sign for sign in SIGNS if getattr(symbol, f"is_{sign}")][:1]


def _public(dual: Dual, target: str) -> str:
    """`k` and `kdot` on top of the members."""
    names = [s.name for s in dual.parameters]
    for n in names:
        check_name(n, *USED)
    keywords = "".join(f", {n}" + (f"={_default(dual.defaults[n])}" if n in dual.defaults else "") for n in names)
    keywords, given = (", *" + keywords if names else ""), "".join(f", {n}" for n in names)
    signs = [f"required({s} {SIGNS[sign]}, {s}, {s.name!r}, {sign!r})" for s in dual.parameters for sign in _sign(s)]
    parts = ["K11, K00 = at_covariance(k11), at_covariance(k00)"]
    if target == "jax":
        if dual.activation is not None:
            leaves = "K22, K31, K20 = at_covariance(k22), at_covariance(k31), at_covariance(k20)"
            parts = [f"{leaves}\nK11 = price(k11, K22, K31)\nK00 = price(k00, K11, K20)"]
    elif target == "numba":
        parts, own = [], "".join(f", {inner(s)}" for s in dual.parameters)
        for member in ("11", "00"):
            parts.append(
                f"@numba.vectorize\ndef K{member}(q12, q11, q22{own}):\n    Delta, q12 = gram_det(q12, q11, q22)\n"
                f"    return k{member}(q12, q11, q22, Delta{own})"
            )
    jit = "jax.jit(flagged({0}))" if target == "jax" else "flagged({0})"
    parts[0 if target == "jax" else -1] += f"\nflagged_K11, flagged_K00 = {jit.format('K11')}, {jit.format('K00')}"
    meanings = (("k", "K00", "E[s(u) s(v)]: one NNGP layer"), ("kdot", "K11", "E[s'(u) s'(v)]: the NTK's factor"))
    for name, member, meaning in meanings:
        if name == "kdot" and (reason := refusal(dual)):
            parts.append(
                f'def kdot(q12, q11, q22{keywords}):\n    """Has no value here."""\n    raise ValueError({reason!r})'
            )
            continue
        lines = [
            f"def {name}(q12, q11, q22{keywords}):",
            f'    """{meaning}."""',
            f"    q12, q11, q22 = {'in_rank' if target == 'jax' else 'inputs'}(q12, q11, q22)",
            *(f"    {n} = parameter({n}, q12)" for n in names if target != "numba"),
            *(f"    {line}" for line in signs),
            f"    return accepted(*flagged_{member}(q12, q11, q22{given}))",
        ]
        parts.append("\n".join(lines))
    return "\n\n\n".join(parts)


def _default(value) -> str:
    return literal(exact(value, "default"))


def _code(dual: Dual, target: str) -> list[str]:
    """Imports, the runtime primitives that are used, members, public functions."""
    members, public = "\n\n\n".join(Members(dual, target).texts()), _public(dual, target)
    used = [n for n in runtime.PRIMITIVES if re.search(rf"(?<![\w.]){n}\b", members + "\n" + public)]
    return [runtime.HEADERS[target], runtime.source(used, target), members, public]


def emit(dual, target: str = "jax", *, tol: float = TOL, norms: tuple[float, float] = NORMS, **parameters) -> str:
    """The source of a module that stands alone and defines `k(q12, q11, q22)` and `kdot(q12, q11, q22)`.

    dual     a Dual, or whatever `derive` takes (with its parameters)
    target   "jax" | "numpy" | "numba" | "torch" | "latex"
    tol      of an activation without closed form: the error of k over sqrt(k11 k22), of kdot over sqrt(kdot11 kdot22)
    norms    and the range of sqrt(q11) and sqrt(q22) in which that holds
    The text is the same to the byte for the same input and version; it imports nothing but its target.
    """
    if target not in TARGETS:
        raise ValueError(f"target {target!r} came; one of {', '.join(TARGETS)} was expected")
    approximate.checked(tol, norms)
    found = _closed_or_open(dual, parameters)
    if found.reason is not None:
        if target == "latex":
            what = f"LaTeX needs a closed form, which {found.dual.activation} has not"
            raise NoClosedForm(f"{what}. Way out: another target, for which it is approximated")
        return _emit_tables(found.dual, approximation(found.dual, tol, norms), target)
    dual = found.dual
    if target == "latex":
        return _latex(dual)
    if dual.kernel is not None and not isinstance(dual.kernel, sp.Expr):
        raise NoClosedForm("a kernel given as a callable has no formula to emit. Way out: dc.compile evaluates it")
    checks = check_rows(dual)
    parts = [
        _docstring(dual, target, worst_error(dual, checks)),
        *_code(dual, target),
        _self_check(target, checks, dual),
    ]
    return "\n\n\n".join(p for p in parts if p) + "\n"


class Found(NamedTuple):
    """A dual, and why it has no closed form (None where it has one)."""

    dual: Dual
    reason: NoClosedForm | None


def _closed_or_open(activation, parameters) -> Found:
    try:
        return Found(derive(activation, **parameters), None)
    except NoClosedForm as reason:
        dual = activation if isinstance(activation, Dual) else resolve(activation, **parameters)
        if dual.parameters and all(s.name in dual.defaults for s in dual.parameters):
            dual = resolve(dual.activation, **{s.name: exact(dual.defaults[s.name], s.name) for s in dual.parameters})
        if dual.parameters:
            names = ", ".join(s.name for s in dual.parameters)
            raise NoClosedForm(f"{reason}. An approximation needs numbers for its parameters: {names}") from None
        return Found(dual, reason)


def load(source: str, name: str) -> types.ModuleType:
    """A generated module, executed. The text comes from this file's printers, never from a user."""
    module = types.ModuleType(f"dualcalc_generated_{name}")
    exec(builtins.compile(source, f"<dualcalc {name}>", "exec"), module.__dict__)
    return module


# ---- tables ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _approximation(activation: sp.Expr, tol: float, norms: tuple[float, float]) -> approximate.Approximation:
    return approximate.build(activation, tol, norms)


def approximation(dual: Dual, tol: float, norms: tuple[float, float]) -> approximate.Approximation:
    """The tables of an activation (seconds to build; kept)."""
    return _approximation(dual.activation, *approximate.checked(tol, norms))


def _table_text(name: str, table: approximate.Table) -> str:
    """A table as the dictionary that the primitives of `runtime.py` take."""

    def numbers(values) -> str:
        row = ", ".join(repr(float(v)) for v in values)
        return "\n".join(textwrap.wrap(f"({row},),", 112, initial_indent=" " * 8, subsequent_indent=" " * 8))

    def part(which: approximate.Part | None) -> list[str]:
        if which is None:
            return ["None,"]
        rows = [numbers(row) for row in which.features.T]
        signs = ", ".join("-1" if s < 0 else "1" for s in which.signs)
        wrapped = (
            textwrap.fill(f"({x},),", 112, initial_indent="    ", subsequent_indent="    ")
            for x in (", ".join(map(str, which.ranks)), signs)
        )
        ranks, signs = wrapped
        return ["(", ranks, "    (", *rows, "    ),", signs, "),"]

    low, high = table.norms
    lines = [
        f"{name} = {{",
        f'"basis": "{table.basis}",',
        f'"variances": ({low * low!r}, {high * high!r}),',
        f'"affine": {tuple(map(float, table.affine))!r},',
        f'"variable": {(float(table.shift), *map(float, table.interval))!r},',
        f'"constant": {float(table.constant)!r}, "linear": {float(table.linear)!r},',
        '"log_scale":',
        numbers(table.log_scale),
        '"even":',
        *part(table.even),
        '"odd":',
        *part(table.odd),
        "}",
    ]
    return "\n".join(lines)


def _emit_tables(dual: Dual, tables: approximate.Approximation, target: str) -> str:
    members = [("K22", tables.kddot)] if target == "jax" and tables.kddot is not None else []
    members += [("K11", tables.kdot)] if tables.kdot is not None else []
    members += [("K00", tables.k)]
    constants = "\n\n".join(_table_text(f"{name}_TABLE", table) for name, table in members)
    functions, slope = [], ""
    for name, _ in members:
        functions.append(f"{name} = tabulated({name}_TABLE{slope if target == 'jax' else ''})")
        slope = f", {name}"
    jit = "jax.jit({0})" if target == "jax" else "{0}"
    public = []
    for name, member, meaning in (
        ("k", "K00", "E[s(u) s(v)]: one NNGP layer"),
        ("kdot", "K11", "E[s'(u) s'(v)]: the NTK's factor"),
    ):
        if name == "kdot" and tables.kdot is None:
            public.append(f'def kdot(q12, q11, q22):\n    """Has no value here."""\n    raise ValueError({JUMPS!r})')
            continue
        diagonal = jit.format(f"table_diagonal({member}_TABLE)")
        functions.append(f"flagged_{member}, diagonal_{member} = {jit.format(f'flagged({member})')}, {diagonal}")
        public.append(
            f'def {name}(q12, q11, q22):\n    """{meaning}; NaN outside the norms of its table."""\n'
            "    q12, q11, q22 = in_rank(q12, q11, q22)\n"
            f"    return accepted(*flagged_{member}(q12, q11, q22))"
        )
        public.append(
            f'def {name}_diagonal(q):\n    """{name}(q, q, q), from one-dimensional quadrature."""\n'
            f"    return diagonal_{member}(in_rank(q)[0])"
        )
    code = "\n\n\n".join(["\n".join(functions), *public])
    used = [n for n in runtime.PRIMITIVES if re.search(rf"(?<![\w.]){n}\b", code)]
    checks = table_rows(dual, tables)
    parts = [
        _table_docstring(dual, tables, target),
        runtime.HEADERS[target],
        runtime.source(used, target),
        constants,
        code,
    ]
    check = _self_check(target, checks, dual).replace(
        "error > 1e-12", f"error > {max(tables.error_bound[0], _second(tables)):g}"
    )
    return "\n\n\n".join([*parts, check]) + "\n"


JUMPS = "the activation jumps: its derivative has a delta, kdot is infinite on the diagonal, and the NTK has no value"


def _second(tables: approximate.Approximation) -> float:
    return 0.0 if tables.kdot is None else tables.error_bound[1]


def _table_docstring(dual: Dual, tables: approximate.Approximation, target: str) -> str:
    low, high = tables.norms
    kdot = "none: the activation jumps" if tables.kdot is None else f"{tables.error_bound[1]:.2g} sqrt(kdot11 kdot22)"
    rows = [
        *_wrap("Approximate dual activation of ", f"s(t) = {dual.activation}, for {target}."),
        "",
        f"method: {tables.method}, degree {tables.degree}, {tables.k.terms} separable terms for k",
        f"domain: norms {low:g} <= sqrt(q11), sqrt(q22) <= {high:g}; NaN outside",
        *_wrap("source: ", dual.source or "a SymPy expression"),
        f"error:  of k at most {tables.error_bound[0]:.2g} sqrt(k11 k22), of kdot {kdot}, in float64",
        "usage:  k(0.4, 1.3, 0.7) is E[s(u) s(v)] for cov12 = 0.4, var1 = 1.3, var2 = 0.7",
        "",
        f"Generated by dualcalc {version('dualcalc')}; `python FILE` checks it against recorded values.",
    ]
    safe = "\n".join(rows).replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{safe}\n"""'


def table_rows(dual: Dual, tables: approximate.Approximation) -> list[tuple[float, ...]]:
    """As `check_rows`, from Hermite series at four points where they converge fast, and on the diagonal."""
    low, high = map(math.log, tables.norms)
    rows = []
    for c, first, second in ((0.4, 0.5, 0.6), (-0.9, 0.55, 0.5), (0.1, 0.05, 0.6), (0.8, 0.6, 0.6), (1.0, 0.7, 0.7)):
        a, b = (math.exp(low + (high - low) * x) for x in (first, second))
        row: list[float] = []
        for order, table in ((0, tables.k), (1, tables.kdot)):
            if table is None:
                row += [math.nan, math.nan]
                continue
            moments = [expansions.second_moment(dual, x, order=order) for x in (a, b)]
            scale = math.sqrt(moments[0] * moments[1])
            if c < 1:
                left, right = (expansions.hermite(dual, 300, x, order=order) for x in (a, b))
                row += [float(np.sum(left * right * c ** np.arange(301))), scale]
            else:
                row += [moments[0], scale]
        rows.append((c * a * b, a * a, b * b, *row))
    return rows


# ---- recorded error -------------------------------------------------------------------------------------------------


def default_values(dual: Dual) -> dict[sp.Symbol, sp.Expr]:
    """The parameters at their defaults, at 1 where there is none."""
    return {s: exact(dual.defaults.get(s.name, 1), s.name) for s in dual.parameters}


def check_rows(dual: Dual) -> list[tuple[float, ...]]:
    """Rows (q12, q11, q22, k, sqrt(k11 k22), kdot, sqrt(kdot11 kdot22)) from balls, parameters as in default_values."""
    if dual.activation is None:
        return []
    values, rows = default_values(dual), []
    growth = float(dual.growth.subs(values))
    shrink = min(1.0, 0.3 / (4 * growth)) if growth > 0 else 1.0
    for point in CHECKS:
        v12, v11, v22 = (x * shrink for x in point)
        row: list[float] = []
        with balls.precision(120):
            for m in (0, 1):
                if m == 1 and dual.jumps:
                    row += [math.nan, math.nan]
                    continue
                places = ((v12, v11, v22), (v11, v11, v11), (v22, v22, v22))
                k, k11, k22 = (balls.value(dual.member(m, m), balls.environment(*v, values)).mid() for v in places)
                row += [float(k), float((k11 * k22).sqrt().mid())]
                if math.isinf(row[-1]):
                    given = ", ".join(f"{symbol} = {float(v):g}" for symbol, v in values.items())
                    raise ValueError(f"{dual.activation}: float64 cannot hold its kernel at {given or 'norm 1'}")
        rows.append((v12, v11, v22, *row))
    return rows


def worst_error(dual: Dual, checks) -> float:
    """The largest error of the NumPy form at the check points over its scale, in eps, rounded up to a power of two."""
    if not checks:
        return math.nan
    module = load("\n\n\n".join(_code(dual, "numpy")), "numpy")
    values = {s.name: float(v) for s, v in default_values(dual).items()}
    worst = 1.0
    for row in checks:
        for f, truth, scale in ((module.k, *row[3:5]), (module.kdot, *row[5:7])):
            if scale > 0:
                worst = max(worst, abs(float(f(*row[:3], **values)) - truth) / scale / 2.0**-52)
    return 2.0 ** math.ceil(math.log2(worst))


def _docstring(dual: Dual, target: str, worst: float) -> str:
    what = f"s(t) = {dual.activation}" if dual.activation is not None else "a kernel without activation"
    usage = "".join(f", {s.name}={literal(v)}" for s, v in default_values(dual).items())
    error = (
        f"at most {worst:g} eps of float64 at the recorded points, over sqrt(k11 k22) and sqrt(kdot11 kdot22)"
        if checks_exist(worst)
        else "not recorded: a kernel without activation has no second form to compare with"
    )
    rows = [
        *_wrap("Dual activation of ", f"{what}, for {target}."),
        "",
        *_wrap("k      = ", _formula(dual, 0)),
        *_wrap("kdot   = ", refusal(dual) or _formula(dual, 1)),
        f"domain: {dual.domain}",
        *_wrap("source: ", dual.source or "a SymPy expression"),
        *_wrap("error:  ", error),
        f"usage:  k(0.4, 1.3, 0.7{usage}) is E[s(u) s(v)] for cov12 = 0.4, var1 = 1.3, var2 = 0.7",
        "",
        f"Generated by dualcalc {version('dualcalc')}; `python FILE` checks it against recorded values.",
    ]
    safe = "\n".join(rows).replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{safe}\n"""'


def _formula(dual: Dual, order: int) -> str:
    terms = [] if dual.activation is None else dual.member(order, order)
    if longer(sp.Tuple(*(e for x in terms for e in (x.coef, x.rad, x.head))), 1500):
        return f"{len(terms)} terms, which are too long for this page; the code below has them"
    return str(dual.kdot if order else dual.k)


def checks_exist(worst: float) -> bool:
    return worst == worst


def _wrap(label: str, content: str) -> list[str]:
    indent = " " * (len(label) if len(label) < 12 else 4)
    return textwrap.wrap(content, 110, initial_indent=label, subsequent_indent=indent, break_long_words=False)


SELF_CHECK = '''# q12, q11, q22, k, sqrt(k11 k22), kdot, sqrt(kdot11 kdot22), from ball arithmetic
CHECKS = (
{rows}
)


def self_check():
    """The largest error at the recorded points, relative to the scales, in float64."""
    worst = 0.0
    for row in CHECKS:
        q = [{number} for x in row[:3]]
        worst = max(worst, abs(float(k(*q{values})) - row[3]) / row[4])
        if row[6] > 0:
            worst = max(worst, abs(float(kdot(*q{values})) - row[5]) / row[6])
    return worst


if __name__ == "__main__":
{setup}    error = self_check()
    print(f"largest relative error at {{len(CHECKS)}} recorded points: {{error:.1e}}")
    raise SystemExit(error > 1e-12)'''


def _self_check(target: str, checks, dual: Dual) -> str:
    if not checks:
        return ""
    return SELF_CHECK.format(
        rows="\n".join(f"    ({', '.join('-1.0' if x != x else repr(x) for x in row)})," for row in checks),
        number="xp.tensor(x, dtype=xp.float64)" if target == "torch" else "x",
        values="".join(f", {s.name}={literal(v)}" for s, v in default_values(dual).items()),
        setup='    jax.config.update("jax_enable_x64", True)\n' if target == "jax" else "",
    )


def _latex(dual: Dual) -> str:
    name = f"% s(t) = {dual.activation}" if dual.activation is not None else "% a kernel without activation"
    rows = [rf"k &= {sp.latex(dual.k)}"]
    rows.append(f"% kdot: {reason}" if (reason := refusal(dual)) else rf"\dot{{k}} &= {sp.latex(dual.kdot)}")
    joined = "\n".join(rows) if refusal(dual) else " \\\\\n".join(rows)
    return "\n".join([name, f"% domain: {dual.domain}", r"\begin{align}", joined, r"\end{align}"]) + "\n"


# ---- compile --------------------------------------------------------------------------------------------------------


class ErrorBound(NamedTuple):
    """Bounds on |error| of k over sqrt(k11 k22), and of kdot over sqrt(kdot11 kdot22)."""

    k: float
    kdot: float


@dataclass(frozen=True)
class Compiled:
    """Jitted JAX functions of one dual.

    k, kdot       `(q12, q11, q22, **parameters)`, broadcasting, differentiable in everything
    method        how they are computed: "closed form", "given kernel", "theta-chebyshev" or "hermite"
    error_bound   of a closed form the recorded float64 rounding error (it has no other), of an approximation the bound
                  of its tables; NaN where none is known
    degree        of an approximation's series, else None
    norms         (least, greatest) norm sqrt(q) that an approximation holds for; NaN outside. None: no limit
    diagonal      of an approximation, k(q, q, q) and kdot(q, q, q) from one-dimensional quadrature
    """

    k: Callable
    kdot: Callable
    method: str
    error_bound: ErrorBound
    dual: Dual
    source: str
    degree: int | None = None
    norms: tuple[float, float] | None = None
    diagonal: tuple[Callable, Callable] | None = None

    @property
    def activation(self) -> Callable:
        """s itself, `(t, **parameters)` in JAX; ValueError for a kernel whose activation is unknown."""
        return activation(self.dual)

    def hermite(self, degree: int, norms: np.ndarray, **parameters) -> np.ndarray:
        """chat_j of s at n norms, (n, degree + 1) in float64: `k = sum_j chat_j(a) chat_j(b) c^j` (`expansions.py`)."""
        return expansions.hermite(self.dual, degree, norms, **parameters)

    def complex_kernel(self) -> tuple[Callable, Callable]:
        """k, kdot `(q12, q11, q22, **parameters)` of a bare kernel in JAX at complex q12, where both are analytic."""
        import jax

        kernel = self.dual.kernel
        if callable(kernel) and not isinstance(kernel, sp.Basic):
            return kernel, lambda q12, *q: jax.jvp(lambda z: kernel(z, *q), (q12,), (1.0 + 0 * q12,))[1]
        names = [q12, q11, q22, *self.dual.parameters]
        given = {symbol.name: float(value) for symbol, value in default_values(self.dual).items()}

        def function(e: sp.Expr) -> Callable:
            f = sp.lambdify(names, e, modules="jax")
            return lambda *q, **parameters: f(*q, **{**given, **parameters})

        return function(self.dual.k), function(self.dual.kdot)

    def __repr__(self) -> str:
        of = f"s(t) = {self.dual.activation}" if self.dual.activation is not None else "a kernel without activation"
        return f"Compiled({of}, method={self.method!r}, error_bound={tuple(self.error_bound)})"


def compile(dual, *, tol: float = TOL, norms: tuple[float, float] = NORMS, **parameters) -> Compiled:
    """Jitted JAX functions `k` and `kdot` of a dual, an activation, or a catalog id.

    The closed form where there is one; else tables with an error of at most `tol` for norms sqrt(q) in `norms`
    (`method`, `degree`, `error_bound` and `norms` of the result say what was chosen).
    Raises ValueError where the tolerance cannot be reached; `fns.kdot` raises NoClosedForm where the activation jumps.
    """
    approximate.checked(tol, norms)
    found = _closed_or_open(dual, parameters)
    dual = found.dual
    if found.reason is not None:
        return _compile_tables(dual, approximation(dual, tol, norms))
    if callable(dual.kernel) and not isinstance(dual.kernel, sp.Basic):
        return _compile_callable(dual)
    source = emit(dual)
    module = load(source, "jax")

    def no_kdot(q12, q11, q22, **_):
        dual.require_ntk()

    eps = worst_error(dual, check_rows(dual)) * 2.0**-52
    method = "closed form" if dual.activation is not None else "given kernel"
    return Compiled(module.k, no_kdot if refusal(dual) else module.kdot, method, ErrorBound(eps, eps), dual, source)


def activation(dual: Dual) -> Callable:
    """s as a function of JAX arrays, `(t, **parameters)`: smooth pieces, each read within its own interval."""
    import jax
    import jax.numpy as jnp

    s = dual.activation
    if s is None:
        raise ValueError("a kernel without a known activation came: it has no network of finite width")
    functions = {
        **{f: getattr(jnp, f.__name__) for f in (sp.exp, sp.log, sp.sin, sp.cos, sp.tan, sp.sinh, sp.cosh, sp.tanh)},
        sp.atan: jnp.arctan,
        sp.erf: jax.scipy.special.erf,
        **dict.fromkeys((sp.erfc, pieces.Erfc), jax.scipy.special.erfc),
        pieces.Expm1: jnp.expm1,
        pieces.Sigmoid: jax.nn.sigmoid,
        pieces.Softplus: jax.nn.softplus,
    }
    algebra = pieces.Algebra(float, jnp.sqrt, lambda x, n: x ** float(n), functions)

    @lru_cache
    def of(values):
        parts = quadrature.profile(s.subs(values)).parts
        return [pieces.Program(pieces.stable(piece)) for piece in parts.pieces], [b.at for b in parts.breaks]

    def function(x, **parameters):
        given = {symbol: parameters.get(symbol.name, value) for symbol, value in default_values(dual).items()}
        try:
            given = {name: v if isinstance(v, sp.Basic) else float(np.asarray(v)) for name, v in given.items()}
        except jax.errors.TracerArrayConversionError:
            raise ValueError(f"parameters of {s} came that JAX traces: a finite network needs numbers") from None
        programs, breaks = of(tuple((symbol, exact(value, symbol.name)) for symbol, value in given.items()))
        edges = [-math.inf, *breaks, math.inf]
        inside = [(p, jnp.clip(x, *ends)) for p, *ends in zip(programs, edges, edges[1:], strict=False)]
        values = [jnp.broadcast_to(p(y, algebra), x.shape) for p, y in inside]
        return jnp.select([x < b for b in breaks], values[:-1], values[-1]) if breaks else values[0]

    return function


def _compile_tables(dual: Dual, tables: approximate.Approximation) -> Compiled:
    source = _emit_tables(dual, tables, "jax")
    module = load(source, "jax")

    def no_kdot(*_):
        raise NoClosedForm(JUMPS)

    jumps = tables.kdot is None
    kdot, kdot_diagonal = (no_kdot, no_kdot) if jumps else (module.kdot, module.kdot_diagonal)
    return Compiled(
        module.k,
        kdot,
        tables.method,
        ErrorBound(*tables.error_bound),
        dual,
        source,
        tables.degree,
        tables.norms,
        (module.k_diagonal, kdot_diagonal),
    )


def _compile_callable(dual: Dual) -> Compiled:
    import jax
    import jax.numpy as jnp

    kernel = dual.kernel
    assert callable(kernel)

    def kdot(q12, q11, q22):
        """Theorem 3: the derivative in q12; at c = +-1 by continuity, from just inside."""
        inside = (1 - jnp.finfo(q12.dtype).eps ** 0.5) * jnp.sqrt(q11 * q22)
        near = jnp.clip(q12, -inside, inside)
        return jax.jvp(lambda q: kernel(q, q11, q22), (near,), (jnp.ones_like(near),))[1]

    def broadcasting(f):
        jitted = jax.jit(f)
        return lambda q12, q11, q22: jitted(*runtime.inputs(q12, q11, q22))

    unknown = ErrorBound(math.nan, math.nan)
    return Compiled(broadcasting(kernel), broadcasting(kdot), "given kernel", unknown, dual, "")
