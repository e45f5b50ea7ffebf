"""`Dual`: what `derive` and `from_kernel` return, the record that every later stage reads.

It holds the activation's normal form, the members `K_mn = E[s^(m)(u) s^(n)(v)]` of Price's family (k is K_00, kdot is
K_11), the domain of the norms, homogeneity, parity, parameters, and the derivation. The formulas exist twice: as terms
with Delta and stable heads (for `codegen.py`), and as plain SymPy in the shape of the literature (`k`, `kdot`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import combinations_with_replacement
from typing import Any

import sympy as sp

from . import catalog, parsing
from .atoms import READERS, Block, NoClosedForm, blocks, differentiate, read
from .gaussian import Angle, Argument, ExpNdtr, ExpPhi2, Phi2, Step, Term, expectation
from .parsing import q11, q12, q22, t
from .rational import MANY, SUBTRACTED, Delta, power_series

# Greek and Latin names that SymPy's assumptions system understands, for parameters of SymPy expressions and of text.
SIGNS = ("positive", "negative", "nonnegative", "nonpositive", "nonzero", "integer")


@dataclass(frozen=True)
class Dual:
    """The dual activation of `activation`, or of a bare kernel.

    activation   SymPy expression in `t`, or None when only the kernel is known
    kernel       SymPy expression in q11, q12, q22, or a callable, when there is no activation; else None
    parameters   the free parameters, sorted by name; keywords of the generated code
    defaults     values for them, where the catalog has some
    source       where the activation comes from: the text as typed, or the catalog id with its references
    """

    activation: sp.Expr | None
    kernel: sp.Expr | Callable | None = None
    parameters: tuple[sp.Symbol, ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict)
    source: str = ""

    # ---- the activation --------------------------------------------------------------------------------------------

    @cached_property
    def pieces(self):
        return read(self._known_activation())

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The normal form of the activation: a sum of blocks."""
        return blocks(self.pieces)

    def derivative(self, order: int) -> tuple[Block, ...]:
        """The blocks of the order-th derivative, deltas included."""
        return _derivatives(self.blocks, order)

    def _known_activation(self) -> sp.Expr:
        if self.activation is None:
            raise NoClosedForm("this dual was defined by its kernel: the activation is unknown")
        return self.activation

    @cached_property
    def parity(self) -> int | None:
        """1 for an even activation, -1 for an odd one, None for neither (or an unknown one)."""
        return None if self.activation is None else self.pieces.parity()

    @cached_property
    def homogeneity(self) -> int | None:
        """p with s(a t) = a^p s(t) for all a > 0, so that k(a q) = a^p k(q), else None."""
        if self.activation is None:
            degree = _degree(self.kernel) if isinstance(self.kernel, sp.Expr) else None
            return int(degree) if degree is not None and degree.is_Integer else None
        degrees = set()
        for b in self.blocks:
            gate_moves = b.gate is not None and (b.gate.at != 0 or b.gate.kind == "erf")
            if b.alpha != 0 or b.beta != 0 or gate_moves:
                return None
            degrees |= {n for n, c in enumerate(b.poly) if c != 0}
        return degrees.pop() if len(degrees) == 1 else None

    @cached_property
    def growth(self) -> sp.Expr:
        """alpha of the fastest exp(alpha t^2); k(q, q, q) is finite iff 4 alpha q < 1."""
        if self.activation is None:
            return sp.Integer(0)
        return sp.Max(0, *(sp.re(b.alpha) for b in self.blocks))

    @property
    def domain(self) -> str:
        """The norms for which the activation is square-integrable, in words."""
        return "all q >= 0" if self.growth == 0 else f"{4 * self.growth}*q < 1"

    @cached_property
    def jumps(self) -> tuple[sp.Expr, ...]:
        """Where the activation jumps (there the NTK has no value)."""
        if self.activation is None:
            return ()
        return tuple(b.gate.at for b in self.derivative(1) if b.gate and b.gate.kind == "delta")

    @cached_property
    def kinks(self) -> tuple[sp.Expr, ...]:
        """Where the pieces of the activation meet; () where it is unknown or outside the closed class."""
        try:
            return () if self.activation is None else self.pieces.breaks
        except NoClosedForm:
            return ()

    # ---- the kernels -----------------------------------------------------------------------------------------------

    def member(self, m: int, n: int) -> list[Term]:
        """`E[s^(m)(u) s^(n)(v)]` as terms; Price: dK_mn/dq12 = K_(m+1)(n+1), dK_mn/dq11 = K_(m+2)n / 2."""
        return self._member(m, n)[0]

    def _member(self, m: int, n: int) -> tuple[list[Term], Step]:
        return _expectation(self.derivative(m), self.derivative(n))

    def mean(self, m: int) -> list[Term]:
        """`E[s^(m)(u)]` for u ~ N(0, q11), as terms."""
        return _expectation(self.derivative(m), (Block((sp.Integer(1),)),))[0]

    @cached_property
    def k(self) -> sp.Expr:
        """E[s(u) s(v)] as a SymPy expression in q11, q12, q22: one NNGP layer."""
        if self.activation is None:
            return self._kernel_expression()
        return formula(self.member(0, 0))

    @cached_property
    def kdot(self) -> sp.Expr:
        """E[s'(u) s'(v)] = dk/dq12: the factor of the NTK. NoClosedForm where the activation jumps."""
        if self.activation is None:  # Theorem 3 of the paper: (1/(ab)) dk/dc
            return _smooth_derivative(self._kernel_expression())
        self.require_ntk()
        return formula(self.member(1, 1))

    def require_ntk(self) -> None:
        """Raise NoClosedForm where the activation jumps."""
        if self.jumps:
            raise NoClosedForm(
                f"the activation jumps at t = {', '.join(map(str, self.jumps))}: its derivative has a delta there, so "
                "kdot = E[s'(u) s'(v)] is infinite on the diagonal and the NTK has no value. k and its gradients are "
                'fine: use get="nngp", or smooth the jump'
            )

    def _kernel_expression(self) -> sp.Expr:
        if not isinstance(self.kernel, sp.Expr):
            raise NoClosedForm(
                "this kernel was given as a numeric callable: it has no formula. Way out: dc.compile evaluates it"
            )
        return self.kernel

    # ---- the derivation --------------------------------------------------------------------------------------------

    @property
    def derivation(self) -> Derivation:
        """The rules that led to k, as a tree; prints as text, `.latex()` as LaTeX."""
        if self.activation is None:
            kernel = self.kernel if isinstance(self.kernel, sp.Expr) else sp.Symbol("kernel")
            return Derivation(Step("Given kernel", f"k = {kernel}; kdot = dk/dq12 (Theorem 3)", sp.latex(kernel)))
        normal = sp.Add(*(b.expr(t) for b in self.blocks))
        form = Step("Normal form", f"s(t) = {normal}", f"s(t) = {sp.latex(normal)}")
        name = f"k = E[s(u) s(v)], s(t) = {self.activation}"
        latex = rf"k = \mathbb{{E}}[s(u)s(v)],\quad s(t) = {sp.latex(self.activation)}"
        collected = Step("Collect", f"k = {self.k}", f"k = {sp.latex(self.k)}")
        return Derivation(Step("Dual", name, latex, (form, self._member(0, 0)[1], collected)))

    def given(self, **parameters) -> Dual:
        """The same dual with parameters replaced by values."""
        if self.activation is not None:
            return derive(_with_values(self.activation, parameters, self.source, self.defaults))
        return from_kernel(self._kernel_expression(), source=self.source, defaults=self.defaults, **parameters)

    def __str__(self) -> str:
        of = f"s(t) = {self.activation}" if self.activation is not None else "a kernel without activation"
        return f"Dual of {of}; domain {self.domain}"


@dataclass(frozen=True)
class Derivation:
    """A tree of applied rules."""

    root: Step

    def __str__(self) -> str:
        lines: list[str] = []

        def walk(step: Step, prefix: str, last: bool, top: bool):
            branch = "" if top else ("`- " if last else "|- ")
            lines.append(f"{prefix}{branch}{step.rule}: {step.statement}")
            below = prefix if top else prefix + ("   " if last else "|  ")
            for i, child in enumerate(step.children):
                walk(child, below, i == len(step.children) - 1, False)

        walk(self.root, "", True, True)
        return "\n".join(lines)

    def latex(self) -> str:
        """The derivation as nested LaTeX lists."""

        def walk(step: Step, depth: int) -> list[str]:
            pad = "  " * depth
            out = [rf"{pad}\item \textbf{{{step.rule}}}" + (f": ${step.latex}$" if step.latex else "")]
            if step.children:
                inner = [line for c in step.children for line in walk(c, depth + 2)]
                out += [rf"{pad}  \begin{{itemize}}", *inner, rf"{pad}  \end{{itemize}}"]
            return out

        return "\n".join([r"\begin{itemize}", *walk(self.root, 1), r"\end{itemize}"])


@lru_cache(maxsize=256)
def _derivatives(s: tuple[Block, ...], order: int) -> tuple[Block, ...]:
    return s if order == 0 else differentiate(_derivatives(s, order - 1))


@lru_cache(maxsize=256)
def _expectation(f, g):
    return expectation(f, g)


# ---- formulas for people --------------------------------------------------------------------------------------------


def _angle(y, x2):
    total = sp.factor((y**2 + x2).xreplace({Delta: SUBTRACTED}))
    return sp.asin(y / sp.sqrt(total))


READABLE = {
    Angle: _angle,
    Argument: sp.atan2,
    ExpNdtr: lambda e, eh, h: sp.exp(e) * (1 + sp.erf(h / sp.sqrt(2))) / 2,
    ExpPhi2: lambda e, eh, ek, er, h, k, th, tk, y, x2: sp.exp(e) * Phi2(h, k, sp.sin(_angle(y, x2))),
}


def formula(terms: list[Term]) -> sp.Expr:
    """The terms as one expression in q11, q12, q22: arcsines, erf, Phi2 in place of the stable heads."""
    by_radical: dict[sp.Expr, list[sp.Expr]] = {}
    for term in terms:
        head = term.head
        for kind, readable in READABLE.items():
            head = head.replace(kind, readable)
        by_radical.setdefault(term.rad, []).append(term.coef * head)
    # one exponential or radical in front of its whole group
    total = sp.Add(*(sp.Add(*parts) / sp.sqrt(rad) for rad, parts in by_radical.items()))
    size = sum(len(sp.Add.make_args(factor)) for x in terms for factor in sp.Mul.make_args(x.coef))
    shared = sp.factor_terms(total) if len(terms) > 1 and size <= MANY else total
    best = min((total, shared), key=sp.count_ops) if shared != total else total
    return best.xreplace({Delta: SUBTRACTED})


# ---- derive ---------------------------------------------------------------------------------------------------------


def derive(activation, *, assume: Mapping[str, str] | None = None, **parameters) -> Dual:
    """The dual of an activation: a catalog id, a text in `t` or `x`, or a SymPy expression.

    parameters   values of the activation's parameters; floats are taken as the decimals that they print as. What is
                 not given stays a symbol.
    assume       signs of symbolic parameters, as {"A": "positive"}
    Raises NoClosedForm, with the reason and the way out, when the activation is outside the closed class, and
    ValueError for text that cannot be read.
    """
    if isinstance(activation, Dual):
        return activation.given(**parameters) if parameters else activation
    dual = resolve(activation, assume=assume, **parameters)
    if dual.activation is not None:
        dual.member(0, 0)  # refuse here, not at first use
    return dual


def resolve(activation, /, *, assume: Mapping[str, str] | None = None, **parameters) -> Dual:
    """Text or expression to an unevaluated Dual; reads nothing of the calculus yet."""
    signs = _assumptions(assume or {})
    if isinstance(activation, str):
        text = activation.strip()
        if text in catalog.load():
            return from_entry(catalog.get(text), signs, **parameters)
        given = {name: dict[str, bool]() for name in parameters}
        expr = parsing.parse_activation(activation, parameters=given | signs, known=tuple(catalog.load()))
        source = text
    elif isinstance(activation, sp.Expr):
        expr, source = _own_variable(_known(activation)), str(activation)
    elif isinstance(activation, int | float):
        expr, source = exact(activation, "the activation"), str(activation)
    else:
        raise ValueError(
            f"an activation is a text, a catalog id or a SymPy expression; a {type(activation).__name__} came"
        )
    return _with_values(expr, parameters, source, {})


HEADS = {*READERS, sp.log, sp.tan, sp.tanh, sp.atan}  # inside the closed class, and beyond it


def _known(expr: sp.Expr) -> sp.Expr:
    """A user's SymPy expression, if it has no function that nothing here can evaluate."""
    for e in sp.preorder_traversal(expr):
        if isinstance(e, sp.Expr) and e.args and e.free_symbols and e.func not in HEADS:
            names = ", ".join(sorted(f.__name__ for f in HEADS))
            raise ValueError(f"the function {e.func.__name__} in {e} is not known; expected only {names}")
    return expr


def exact(value, name: str) -> sp.Expr:
    """A parameter value as an exact number: a float is the decimal that it prints as."""
    if isinstance(value, sp.Expr):
        if value.is_number and value.is_real and value.is_finite:
            return value
        raise ValueError(f"{name} = {value}: a finite real number was expected, without symbols")
    try:
        fraction = catalog.exact(value.item() if hasattr(value, "item") else value)
    except ValueError as error:
        raise ValueError(f"{name} = {value!r}: {error}") from None
    return sp.Rational(fraction.numerator, fraction.denominator)


def _assumptions(assume: Mapping[str, str]) -> dict[str, dict[str, bool]]:
    for name, sign in assume.items():
        if sign not in SIGNS:
            raise ValueError(f"assume[{name!r}] = {sign!r}: one of {', '.join(SIGNS)} was expected")
    return {name: {sign: True} for name, sign in assume.items()}


def from_entry(entry: catalog.Entry, signs: Mapping[str, dict[str, bool]] | None = None, /, **parameters) -> Dual:
    """The unevaluated dual of a catalog record; integers and lists default to the record's, other parameters stay."""
    text, rest = entry.text(**parameters)
    known = {
        p: {sign: True for sign in ("positive", "nonnegative") if getattr(spec, sign)}
        for p, spec in entry.parameters.items()
    }
    known.update(signs or {})
    defaults = entry.defaults
    cited = ", ".join(dict.fromkeys((*entry.references.nngp, *entry.references.ntk)))
    source = f"catalog {entry.id}: {text}" + (f" [{cited}]" if cited else "")
    if entry.kernel is not None:
        return from_kernel(text, assume_known=known, source=source, defaults=defaults, **rest)
    return _with_values(parsing.parse_activation(text, parameters=known), rest, source, defaults)


def drafted(id: str, **fields: Any) -> catalog.Draft:
    """`catalog.draft`, its `closed_form` and `jumps` as they are found; ValueError where the formula cannot be read."""
    dual = from_entry(catalog.draft(id, **fields).entry)
    try:
        assert dual.k is not None
    except NoClosedForm:
        return catalog.draft(id, closed_form=False, **fields)
    return catalog.draft(id, jumps=dual.activation is not None and bool(dual.jumps), **fields)


def _own_variable(expr: sp.Expr) -> sp.Expr:
    """A user's SymPy expression in our real variable t, its parameters real."""
    if expr.has(sp.I, sp.zoo, sp.nan, sp.oo):
        raise ValueError(f"{expr}: an activation is a finite real function; this is not")
    variables = {s for s in expr.free_symbols if s.name in ("t", "x")}
    if len(variables) > 1:
        raise ValueError(f"two variables came in {expr}: an activation has one, t or x")
    if not variables and expr.free_symbols:
        raise ValueError(f"no variable in {expr}: the variable of an activation is t or x")
    renamed = {s: t if s in variables else _real(s) for s in expr.free_symbols}
    return expr.xreplace(renamed)


def _real(symbol: sp.Symbol) -> sp.Symbol:
    """A parameter of a SymPy expression, under the rule for names in text."""
    parsing.check_name(symbol.name, *parsing.VARIABLES)
    return symbol if symbol.is_real else sp.Symbol(symbol.name, real=True)


def _with_values(expr, values, source, defaults) -> Dual:
    free = {s.name: s for s in expr.free_symbols if s != t}
    if unknown := [name for name in values if name not in free]:
        raise catalog.no_parameter(expr, unknown[0], sorted(free))
    values = {name: exact(value, name) for name, value in values.items()}
    expr = expr.subs({free[name]: value for name, value in values.items()}) if values else expr
    if expr.has(sp.zoo, sp.nan, sp.oo):
        raise ValueError(f"{source}: not finite for {values}")
    rest = tuple(sorted((s for s in expr.free_symbols if s != t), key=lambda s: s.name))
    for s in rest:
        if s.is_integer:
            raise ValueError(f"the integer parameter {s} shapes the formula: give it a value, as {s}=3")
    kept = {s.name: defaults[s.name] for s in rest if s.name in defaults}
    return Dual(expr, None, rest, kept, source)


# ---- kernels without an activation ----------------------------------------------------------------------------------


def _degree(expr: sp.Expr) -> sp.Expr | None:
    """p with f(a q) = a^p f(q) for all a > 0, read from the structure of f(q11, q12, q22); None where it shows none."""
    if expr in (q11, q12, q22):
        return sp.Integer(1)
    degrees = [_degree(part) for part in expr.args]
    if not degrees:
        return sp.Integer(0)
    if None in degrees:
        return None
    if expr.is_Mul:
        return sp.Add(*degrees)
    if expr.is_Pow and degrees[1] == 0 and (degrees[0] == 0 or expr.exp.is_Rational):
        return degrees[0] * expr.exp if degrees[0] else sp.Integer(0)
    same = degrees[0] if len(set(degrees)) == 1 else None
    return same if expr.is_Add or same == 0 else None


def from_kernel(kernel=None, *, kappa=None, source: str = "", defaults=None, assume_known=None, **parameters) -> Dual:
    """A dual whose activation is unknown.

    kernel   text or SymPy expression in q11, q12, q22, or a callable `(q12, q11, q22)` of JAX or NumPy arrays
    kappa    text or expression in t = cos: the 1-homogeneous kernel sqrt(q11 q22) kappa(t)
    kdot follows by the paper's Theorem 3, `kdot = (1/(ab)) dk/dc`. A kernel that is not symmetric, has a negative
    power-series coefficient in c, or is not positive semi-definite on a sphere is refused with ValueError, and so is a
    callable that does not return one float for each entry of its three arrays. Free parameters are at their defaults,
    or at 1, for these checks.
    """
    if (kernel is None) == (kappa is None):
        raise ValueError("give either a kernel in q11, q12, q22 or kappa in t, not both")
    known = assume_known or {}
    if kappa is not None:
        if not isinstance(kappa, str | sp.Expr):
            raise ValueError(f"kappa is a text or SymPy expression in t, the cosine; a {type(kappa).__name__} came")
        expr = parsing.parse_kappa(kappa, parameters=known) if isinstance(kappa, str) else _own_variable(kappa)
        kernel = sp.sqrt(q11 * q22) * expr.xreplace({t: q12 / sp.sqrt(q11 * q22)})
        source = source or f"kappa = {kappa}"
    if callable(kernel) and not isinstance(kernel, sp.Basic):
        _check_spheres(_sampled(kernel, "the callable"), "the callable")
        return Dual(None, kernel, (), {}, source or getattr(kernel, "__name__", "callable"))
    if isinstance(kernel, str):
        source = source or kernel
        kernel = parsing.parse_kernel(kernel, parameters=known)
    if not isinstance(kernel, sp.Expr):
        raise ValueError(
            f"a kernel is a text or SymPy expression in q11, q12, q22, or a callable (q12, q11, q22); "
            f"a {type(kernel).__name__} came"
        )
    ours = {"q11": q11, "q12": q12, "q22": q22}
    kernel = kernel.xreplace({s: ours.get(s.name) or _real(s) for s in kernel.free_symbols})
    free = {s.name: s for s in kernel.free_symbols - {q11, q12, q22}}
    if unknown := [name for name in parameters if name not in free]:
        raise catalog.no_parameter(kernel, unknown[0], sorted(free))
    values = {free[name]: exact(value, name) for name, value in parameters.items()}
    kernel = kernel.subs(values)
    rest = tuple(sorted(kernel.free_symbols - {q11, q12, q22}, key=lambda s: s.name))
    kept = {s.name: defaults[s.name] for s in rest if s.name in (defaults or {})}
    numeric = kernel.subs({s: exact(kept.get(s.name, 1), s.name) for s in rest})
    function = sp.lambdify((q12, q11, q22), numeric, ["scipy", "numpy"])
    source = source or str(kernel)
    sampled = _sampled(lambda *q: function(*q) + 0 * q[0], source)
    _check_series(numeric, source)
    _check_spheres(sampled, source)
    return Dual(None, kernel, rest, kept, source)


NORMS = (sp.Integer(1), sp.Rational(1, 2), sp.Rational(3, 2))  # where a kernel is checked
SPHERES = (2, 3, 5, 9, 17, 33, 129, 513)  # dimensions of the spheres on which it must be positive semi-definite
DEGREE = 20  # of the components that are checked


def _check_series(kernel: sp.Expr, name: str) -> None:
    """Refuse `K = sum_l R_l(a, b) c^l` where a coefficient R_l is surely not positive semi-definite in the norms.

    By Schoenberg's theorem a kernel on the spheres of every dimension needs that. The coefficients are balls, so that
    nothing is refused for rounding; a kernel without a power series at c = 0 is left to `_check_spheres`.
    """
    pairs = list(combinations_with_replacement(NORMS, 2))
    series = [power_series(kernel, {q11: a**2, q22: b**2}, a * b, 2 * DEGREE) for a, b in pairs]
    for degree, row in enumerate(zip(*series, strict=False)):
        r = dict(zip(pairs, row, strict=True))
        for a, b in pairs:
            if a == b and r[a, a] < 0:
                raise ValueError(
                    f"{name}: not positive semi-definite: at q11 = q22 = {a**2} its power series in the cosine c has "
                    f"the coefficient {float(r[a, a]):.3g} at degree {degree}"
                )
            if r[a, a] * r[b, b] < r[a, b] * r[a, b]:
                raise ValueError(
                    f"{name}: not positive semi-definite: at the norms {a} and {b} its power series in the cosine c "
                    f"has at degree {degree} the coefficients {float(r[a, a]):.3g} and {float(r[b, b]):.3g}, and "
                    f"between them {float(r[a, b]):.3g}, which is too large"
                )


def _sampled(k: Callable, name: str):
    """K at cos(angles) between vectors of three norms, of shape (angles, 3, 3); refuse what is no symmetric kernel."""
    import numpy as np

    theta, _ = _angles()
    a = np.array([float(norm) for norm in NORMS])
    q = np.broadcast_arrays(np.cos(theta)[:, None, None] * np.outer(a, a), a[:, None] ** 2, a**2)
    values = _called(k, [np.ascontiguousarray(v) for v in q], name)
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{name}: not finite for every q12 in [-sqrt(q11 q22), sqrt(q11 q22)]")
    difference = np.abs(values - values.transpose(0, 2, 1)).max()
    if difference > max(1e-9, 1e3 * np.finfo(values.dtype).eps) * np.abs(values).max():
        raise ValueError(f"{name}: not symmetric in the exchange of q11 and q22, so it is no kernel")
    return values


def _check_spheres(values, name: str) -> None:
    """Refuse a sampled kernel that on some sphere has a component which is not positive semi-definite in the norms.

    On the sphere in R^d the component of degree l is the mean of K times the Gegenbauer polynomial of that degree over
    the cosine; in the angle the integrand is smooth, so that Gauss-Legendre gives it to rounding. Rounding is taken as
    64 eps of the returned floats, or as what components of degree 60 to 120 show of it.
    """
    import numpy as np

    theta, w = _angles()
    eps, values = float(np.finfo(values.dtype).eps), values.astype(float)
    size, values = np.abs(values).max(), (values + values.transpose(0, 2, 1)) / 2

    def lowest(d: int, degree: int):
        """The smallest eigenvalue over the norms of the components of degree 0, 1, .."""
        weights = w * np.sin(theta) ** (d - 2)
        weighted = _gegenbauer(np.cos(theta), d, degree) * (weights / weights.sum())
        return np.linalg.eigvalsh(np.einsum("ln,nij->lij", weighted, values))[:, 0]

    noise = -min(0.0, lowest(2, 120)[60:].min())
    rounding = max(64 * eps * size, min(10 * noise, 1e-8 * size))
    for d in SPHERES:
        low = lowest(d, DEGREE)
        if low.min() < -rounding:
            raise ValueError(
                f"{name}: not positive semi-definite: on spheres in {d} dimensions its component of degree "
                f"{low.argmin()} has the eigenvalue {low.min():.3g} (largest value {size:.3g}, rounding {rounding:.1g})"
            )


@lru_cache
def _angles():
    """256 Gauss-Legendre nodes and weights on [0, pi]."""
    import numpy as np

    x, w = np.polynomial.legendre.leggauss(256)
    return (x + 1) * (np.pi / 2), w


def _gegenbauer(c, d: int, degree: int):
    """The polynomials of degree 0, 1, .. that are orthonormal for (1 - c^2)^((d-3)/2), as rows."""
    half, rows, before, last = (d - 2) / 2, [1 + 0 * c], 0 * c, 0.0
    for n in range(degree):
        square = (n + 1) * (n + 2 * half) / (4 * (n + half) * (n + half + 1)) if n + half else 0.5
        rows.append((c * rows[-1] - last * before) / square**0.5)
        before, last = rows[-2], square**0.5
    return rows


def _called(k: Callable, q: list, name: str):
    """k(q12, q11, q22) as an array of floats, or what is wrong with it."""
    import numpy as np

    expected = f"an array of real floats of shape {q[0].shape} was expected, as q12, q11 and q22 have"
    try:
        with np.errstate(all="ignore"):
            came = k(*q)
    except Exception as error:  # a user's function may raise anything
        raise ValueError(
            f"{name}: k(q12, q11, q22) raised {type(error).__name__} ({error}) for arrays of shape {q[0].shape}; "
            "a kernel must work on arrays: write it with jax.numpy or numpy functions, without if"
        ) from error
    if not hasattr(came, "shape"):
        raise ValueError(f"{name}: k(q12, q11, q22) returned a {type(came).__name__}; {expected}")
    values = np.asarray(came)
    if values.shape != q[0].shape or not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{name}: k(q12, q11, q22) returned {values.dtype} of shape {values.shape}; {expected}")
    return values


def _smooth_derivative(kernel: sp.Expr) -> sp.Expr:
    """dk/dq12, with the 0/0 of arc-cosine kernels at c = +-1 cancelled."""
    plain = sp.diff(kernel, q12)
    if not kernel.has(sp.acos, sp.asin, sp.atan) and not plain.has(sp.Pow):
        return plain
    root = sp.sqrt(q11 * q22 - q12**2)

    def same_root(e):
        # 1/sqrt(1 - q12^2/(q11 q22)) = sqrt(q11 q22)/sqrt(q11 q22 - q12^2)
        base, power = e.as_base_exp()
        if power.is_Rational and power.q == 2:
            together = sp.factor(sp.together(base))
            numerator, denominator = together.as_numer_denom()
            if sp.expand(numerator - (q11 * q22 - q12**2)) == 0:
                return root ** (2 * power) / sp.sqrt(denominator) ** (2 * power)
        return e

    rewritten = plain.replace(lambda e: e.is_Pow, same_root)
    return sp.simplify(sp.expand(rewritten))
