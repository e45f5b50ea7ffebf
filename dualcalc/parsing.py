"""Text to SymPy, safely: the security boundary of dualcalc.

Formulas come from catalog files, command lines and web forms. Python's own parser reads the text into a syntax tree
that is never run; `_Reader` walks the tree and builds the SymPy objects itself, from the whitelist below and nothing
else. No string ever reaches SymPy (its functions evaluate strings) but for names that matched `NAME`. What cannot be
shown to be a finite real function on the whole line is refused, and so is what would take long: every bound is checked
before SymPy computes. `dual.py` and the command line call this; `t`, `q11`, `q12`, `q22` are the package's variables.
"""

from __future__ import annotations

import ast
import difflib
import keyword
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import NamedTuple, NoReturn

import sympy as sp

t = sp.Symbol("t", real=True)
q11 = sp.Symbol("q11", positive=True)
q22 = sp.Symbol("q22", positive=True)
q12 = sp.Symbol("q12", real=True)


class Symbols(NamedTuple):
    """The covariances as symbols: E[u u], E[u v], E[v v]."""

    q11: sp.Symbol
    q12: sp.Symbol
    q22: sp.Symbol


symbols = Symbols(q11, q12, q22)

MAX_TEXT = 2000  # characters
MAX_DEPTH = 60  # nested brackets, operators and calls
MAX_NODES = 600  # names, numbers, operators and calls in the text
MAX_SIZE = 2000  # nodes of the SymPy tree, after hermite and the like are written out
MAX_DEGREE = 64  # of a polynomial, and of any power
MAX_DIGITS, MAX_EXPONENT = 40, 99  # of one number; as in the catalog, which writes coefficients as p/q
MAX_BITS = 1024  # of any exact number that arises
MAX_ROOT_BITS = 512  # of a number whose root is taken: SymPy looks for its factors
SMALL = 60  # of a constant; and SymPy may simplify Max, Min, comparisons up to this size: it compares all pairs
STURM_DEGREE, STURM_BITS = 16, 128  # of a polynomial whose real roots are counted (0.1 s)

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?(\d+))?", re.ASCII)
GLUED = re.compile(r"(?<![\w.])(?>(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)(?=[A-Za-z_])", re.ASCII)  # 2t, 0x10, 1_000, 1j
STRANGE = re.compile(r"[^\t\n\r\x20-\x7e]|[\\#$?;^]|!(?!=)")
BRACKETS = re.compile(r"[()\[\]{}]")


class ParseError(ValueError):
    """The text is not an admissible formula.

    text     the formula
    column   where it went wrong, counted from 0
    reason   what came, what was expected, what to do
    """

    def __init__(self, text: str, column: int, reason: str):
        super().__init__(text, column, reason)
        self.text, self.column, self.reason = text, column, reason

    def __str__(self) -> str:
        start = max(0, self.column - 60)
        line = re.sub(r"[^\x20-\x7e]", lambda m: " " if m[0] in "\t\n\r" else "?", self.text[start : start + 120])
        return f"{line}\n{' ' * (self.column - start)}^\n{self.reason}"


def check_name(name: str, *taken: str) -> None:
    """Refuse a parameter's name that could not be a keyword of generated code, or means something else here."""
    if not NAME.fullmatch(name) or "__" in name or keyword.iskeyword(name) or name in taken:
        raise ValueError(
            f"the parameter {name!r}: got a name that is not plain, or has a meaning in the code; expected a letter, "
            "then up to 39 letters, digits and single _, and no word of Python; rename it"
        )


def parse_activation(
    text: str, *, parameters: Mapping[str, Mapping[str, bool]] = {}, known: Iterable[str] = ()
) -> sp.Expr:
    """An activation in `t` (the text may say `x`); every other name is a real parameter.

    parameters   assumptions by parameter name, as {"A": {"positive": True}}
    known        catalog ids, for "did you mean" where the whole text is one unknown name

    Divisors and arguments of log and of roots must be provably nonzero or positive for all real t. A divisor that has
    only parameters in it is taken to be nonzero. Raises ParseError.
    """
    return _Reader(text, ACTIVATION, parameters, known).read()


def parse_kernel(text: str, *, parameters: Mapping[str, Mapping[str, bool]] = {}) -> sp.Expr:
    """A kernel in q11, q12, q22; asin and acos are allowed, and domains are not checked. Raises ParseError."""
    return _Reader(text, KERNEL, parameters).read()


def parse_kappa(text: str, *, parameters: Mapping[str, Mapping[str, bool]] = {}) -> sp.Expr:
    """A function of the cosine `t`, which is within [-1, 1]; otherwise as `parse_kernel`. Raises ParseError."""
    return _Reader(text, KAPPA, parameters).read()


# ---- the whitelist --------------------------------------------------------------------------------------------------


def _is_small(*exprs: sp.Basic) -> bool:
    return sum(1 for _ in islice(sp.preorder_traversal(sp.Tuple(*exprs)), SMALL + 1)) <= SMALL and len(exprs) <= 8


def _extremum(kind) -> Callable[..., sp.Expr]:
    return lambda *args: kind(*args, evaluate=_is_small(*args))


def _hermite(n: sp.Expr, x: sp.Expr) -> sp.Expr:
    """He_n, the probabilists' polynomial: He_(n+1) = x He_n - n He_(n-1)."""
    assert isinstance(n, sp.Integer)
    previous, he = [0], [1]
    for j in range(int(n)):
        previous, he = he, [a - j * b for a, b in zip([0, *he], [*previous, 0, 0], strict=False)]
    return sp.Add(*(sp.Integer(c) * x**k for k, c in enumerate(he) if c))


HALF, ROOT2 = sp.Rational(1, 2), sp.sqrt(2)
FUNCTIONS: dict[str, Callable[..., sp.Expr]] = {
    **{f.__name__: f for f in (sp.exp, sp.log, sp.sin, sp.cos, sp.tan, sp.sinh, sp.cosh, sp.tanh, sp.atan, sp.sign)},
    **{f.__name__: f for f in (sp.Abs, sp.Heaviside, sp.erf, sp.erfc, sp.sqrt)},
    "abs": sp.Abs,
    "step": sp.Heaviside,
    "Phi": lambda x: (1 + sp.erf(x / ROOT2)) / 2,
    "phi": lambda x: sp.exp(-(x**2) / 2) / sp.sqrt(2 * sp.pi),
    "sigmoid": lambda x: 1 / (1 + sp.exp(-x)),
    "softplus": lambda x: sp.log(1 + sp.exp(x)),
    "relu": lambda x: _extremum(sp.Max)(x, sp.Integer(0)),
    "Max": _extremum(sp.Max),
    "Min": _extremum(sp.Min),
    "hermite": _hermite,
    "Piecewise": lambda *pairs: sp.Piecewise(*pairs, evaluate=False),
}
ARITY = {"Max": (1, MAX_NODES), "Min": (1, MAX_NODES), "Piecewise": (1, MAX_NODES), "hermite": (2, 2)}  # others: one
# SymPy expands the argument of these into its real and imaginary part, unless it sees that the argument is real
SPLITTING = {"sinh", "cosh", "tanh", "Heaviside", "step", "sign", "Abs", "abs"}
SPLIT_DEGREE = 8
EXPONENTIAL = {"exp", "phi", "sigmoid", "softplus"}
CONSTANTS = {"pi": sp.pi, "e": sp.E}
BINARY: dict[type, Callable] = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
COMPARISONS = {ast.Lt: sp.StrictLessThan, ast.LtE: sp.LessThan, ast.Gt: sp.StrictGreaterThan, ast.GtE: sp.GreaterThan}
SYMPY_FAILS = (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError)  # its bugs included
NOT_FINITE = (sp.zoo, sp.nan, sp.oo, -sp.oo, sp.I)
NO_NUMBER = {"zoo", "nan", "oo", "inf", "I"}  # names that elsewhere mean no finite real number


@dataclass(frozen=True)
class Grammar:
    """What a kind of text may mention, and whether it must be finite and real for all real t."""

    variables: Mapping[str, sp.Symbol]
    functions: Mapping[str, Callable[..., sp.Expr]]
    whole_line: bool


ACTIVATION = Grammar({"t": t, "x": t}, FUNCTIONS, whole_line=True)
KAPPA = Grammar({"t": t, "x": t}, FUNCTIONS | {"asin": sp.asin, "acos": sp.acos}, whole_line=False)
KERNEL = Grammar({"q11": q11, "q12": q12, "q22": q22}, FUNCTIONS | {"asin": sp.asin, "acos": sp.acos}, whole_line=False)
VARIABLES = {*ACTIVATION.variables, *KERNEL.variables}

QUOTED: dict[type, str] = {str: "a quoted text", bytes: "bytes"}
SAID: dict[type, str] = {  # what the syntax is called in an error
    ast.Attribute: "an attribute ('.')",
    ast.Subscript: "a subscript ('[')",
    ast.Lambda: "a lambda",
    ast.JoinedStr: "an f-string",
    ast.Starred: "a starred argument",
    ast.Compare: "a comparison outside a Piecewise condition",
    ast.BoolOp: "and/or (nest the Piecewise, or chain as in 0 < t < 1)",
    ast.NamedExpr: "an assignment",
    ast.Tuple: "a tuple outside Piecewise",
    ast.IfExp: "if/else (write a Piecewise)",
    **dict.fromkeys((ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp), "a comprehension"),
}


# ---- what can be shown ----------------------------------------------------------------------------------------------


def _rational_polynomial(e: sp.Expr) -> sp.Poly | None:
    """e as a polynomial in t whose real roots can be counted at once."""
    atoms, powers = e.atoms(), e.atoms(sp.Pow)
    if t not in atoms or not all(a.is_Rational or a == t for a in atoms) or not all(f.exp.is_Integer for f in powers):
        return None
    if not e.is_polynomial(t) or _Scale()[e].degree > STURM_DEGREE:
        return None
    p = sp.Poly(e, t)
    return p if all(_bits(c) <= STURM_BITS for c in p.all_coeffs()) else None


def _outweighs(e: sp.Expr) -> bool:
    """Whether e = constant + bounded + nonnegative with a constant beyond the bound: 2 + sin(t), 3 - tanh(t)."""
    constant, rest = e.as_coeff_Add()
    for term in sp.Add.make_args(rest):
        c, f = term.as_coeff_Mul()
        if isinstance(f, sp.sin | sp.cos | sp.tanh | sp.erf):
            constant -= abs(c)
        elif not term.is_nonnegative:
            return False
    return bool(constant > 0)


def is_positive(e: sp.Expr) -> bool:
    """Whether e > 0 for all real t can be shown."""
    if e.is_positive or _outweighs(e):
        return True
    p = _rational_polynomial(e)
    return p is not None and p.eval(0) > 0 and p.count_roots() == 0


def is_nonnegative(e: sp.Expr) -> bool:
    """Whether e >= 0 for all real t can be shown."""
    if e.is_nonnegative or is_positive(e):
        return True
    p = _rational_polynomial(e)
    return p is not None and p.LC() > 0 and all(m % 2 == 0 or f.count_roots() == 0 for f, m in p.sqf_list()[1])


def is_nonzero(e: sp.Expr) -> bool:
    """Whether e has no real zero, as far as can be shown; parameters alone are taken to be nonzero."""
    bases = [f.as_base_exp()[0] for f in sp.Mul.make_args(e)]
    return all(not b.is_zero if not b.has(t) else b.is_nonzero or is_positive(b) or is_positive(-b) for b in bases)


# ---- sizes ----------------------------------------------------------------------------------------------------------


class Measure(NamedTuple):
    """How large an expression is.

    size     nodes
    bits     of its longest rational number
    top      its largest rational number, rounded up; for p/q at least p/16 and q/16, so that exponents stay short
    degree   the largest power that it stands for, as a polynomial or by its exponents
    finite   whether it is free of infinities and of the imaginary unit
    """

    size: int
    bits: int
    top: int
    degree: int
    finite: bool


def _bits(number: sp.Rational) -> int:
    return int(number.p).bit_length() + (int(number.q).bit_length() if number.q != 1 else 0)


class _Scale(dict[sp.Basic, Measure]):
    """Measures, remembered: every subexpression is weighed once."""

    def __missing__(self, e: sp.Basic) -> Measure:
        if isinstance(e, sp.Rational):
            p, q = abs(int(e.p)), int(e.q)
            measure = Measure(1, _bits(e), p if q == 1 else max(p // q + 1, max(p, q) // 16), 0, True)
        elif not e.args:
            measure = Measure(1, 0, 0, int(isinstance(e, sp.Symbol)), e not in NOT_FINITE)
        else:
            sizes, bits, tops, degrees, finite = zip(*(self[a] for a in e.args), strict=True)
            degree = max(degrees)
            if isinstance(e, sp.Mul):
                degree = sum(degrees)
            elif isinstance(e, sp.Pow | sp.exp):
                degree = self.power_degree(*e.as_base_exp())
            elif isinstance(e, sp.Function) and not isinstance(e, sp.Abs | sp.Piecewise):
                degree = 0
            measure = Measure(1 + sum(sizes), max(bits), max(tops), degree, all(finite))
        self[e] = measure
        return measure

    def power_degree(self, base: sp.Expr, exponent: sp.Expr) -> int:
        """The degree of base**exponent, without building it.

        SymPy computes 2**n and 3**n from 2**(t + n)/2**t and exp(n log 3), so numbers in such exponents count too.
        """
        if base == sp.E:
            return self[exponent].top if exponent.has(sp.log) else 0
        if exponent.is_Integer and base.is_Rational:
            return 0
        per_unit = max(1, self[base].degree) if exponent.is_Rational else 1
        return self[exponent].top * per_unit


# ---- the reader -----------------------------------------------------------------------------------------------------


MEANT = {
    "where": "Piecewise",
    "heaviside": "Heaviside",
    "gelu": "t*Phi(t)",
    "silu": "t*sigmoid(t)",
    "swish": "t*sigmoid(t)",
}
"""What other libraries call it."""


class _Reader:
    """Walks the syntax tree of one text. Every SymPy object is made in `made`, which checks the result."""

    def __init__(self, text: str, grammar: Grammar, parameters, known: Iterable[str] = ()):
        self.text, self.grammar, self.parameters, self.known = text, grammar, parameters, known
        self.scale = _Scale()
        self.depth = 0
        self.variable = ""
        self.free: list[ast.Name] = []  # the parameters, as they come

    def read(self) -> sp.Expr:
        root = self.syntax()
        if isinstance(root, ast.Name) and NAME.fullmatch(root.id) and root.id not in VARIABLES | self.parameters.keys():
            if root.id not in {*CONSTANTS, *NO_NUMBER, *self.grammar.functions}:
                hint = self.did_you_mean(root.id, (*self.grammar.functions, *self.known))
                hint = hint or "; --catalog or $DUALCALC_CATALOG names a folder of yours" * bool(self.known)
                self.fail(root, f"the unknown name '{root.id}'", f"a formula or a catalog id{hint}")
        try:
            e = self.walk(root)
            undeclared = [node for node in self.free if node.id not in self.parameters]
            if self.grammar.whole_line and undeclared and not self.variable:
                wanted = f"the variable t or x; '{undeclared[0].id}' is read as a parameter: did you mean t for it?"
                self.fail(undeclared[0], "a formula without its variable", wanted)
            for node in undeclared:
                if node.id in self.known:
                    wanted = f"its formula there (dualcalc catalog show {node.id}), or another name for a parameter"
                    self.fail(node, f"'{node.id}', an activation of the catalog, within a formula", wanted)
            return e
        except ParseError:
            raise
        except (RecursionError, *SYMPY_FAILS) as error:
            self.fail(root, f"something that SymPy refuses ({type(error).__name__})", "a simpler, flatter formula")

    def fail(self, where: ast.AST | int, got: str, expected: str) -> NoReturn:
        column = where if isinstance(where, int) else getattr(where, "col_offset", 1) - 1
        got = got if got.startswith("cannot") else f"got {got}"
        raise ParseError(self.text, min(max(column, 0), len(self.text)), f"{got}; expected {expected}") from None

    def source(self, node: ast.AST) -> str:
        """What the user wrote there."""
        return self.text[getattr(node, "col_offset", 1) - 1 : getattr(node, "end_col_offset", 1) - 1]

    @staticmethod
    def did_you_mean(name: str, candidates: Iterable[str]) -> str:
        names = {c.lower(): c for c in candidates}
        close = difflib.get_close_matches(name.lower(), names, n=1)
        return f"; did you mean '{names[close[0]]}'?" if close else ""

    def syntax(self) -> ast.expr:
        """Python's syntax tree; whatever could choke Python's parser is found before."""
        if not self.text.strip():
            self.fail(0, "an empty text", "a formula such as t*Phi(t)")
        if len(self.text) > MAX_TEXT:
            self.fail(MAX_TEXT, f"{len(self.text)} characters", f"at most {MAX_TEXT}")
        if bad := STRANGE.search(self.text):
            wanted = "** for a power" if bad[0] == "^" else "ASCII letters, digits and + - * / ** ( ) , . < >"
            self.fail(bad.start(), f"the character {ascii(bad[0])}", wanted)
        if glued := GLUED.search(self.text):
            self.fail(glued.start(), "a number run together with letters or _", "an operator between, as in 2*t")
        opened: list[int] = []
        for bracket in BRACKETS.finditer(self.text):
            if bracket[0] in "([{":
                opened.append(bracket.start())
            elif not opened:
                self.fail(bracket.start(), f"{bracket[0]!r}", "no closing bracket: none is open")
            else:
                opened.pop()
            if len(opened) > MAX_DEPTH:
                self.fail(bracket.start(), f"more than {MAX_DEPTH} nested brackets", "a flatter formula")
        if opened:
            self.fail(opened[-1], "a bracket that is never closed", "its closing bracket")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # what is doubtful is refused below
                root = ast.parse("(" + re.sub(r"[\t\n\r]", " ", self.text) + ")", mode="eval").body
        except SyntaxError as error:
            self.fail((error.offset or 2) - 2, "something that is no formula", "2*t for a product, f(t) for a function")
        except (ValueError, MemoryError, RecursionError):
            self.fail(0, "a formula that is too deep", "a flatter one")
        if (count := sum(isinstance(node, ast.expr) for node in ast.walk(root))) > MAX_NODES:
            self.fail(0, f"{count} names, numbers and operators", f"at most {MAX_NODES}")
        return root

    def made(self, where: ast.AST, build: Callable[..., sp.Expr], *args: sp.Basic) -> sp.Expr:
        """build(*args), checked: a finite real expression of bounded size."""
        try:
            e = build(*args)
            m = self.scale[e]
            size = SMALL if e.is_number else MAX_SIZE
            small = m.finite and m.size <= size and m.bits <= MAX_BITS and m.degree <= MAX_DEGREE
            value = e.evalf(15, strict=True) if small and e.is_number and not e.is_Rational else None
        except sp.core.evalf.PrecisionExhausted:
            self.fail(where, "a number that cannot be told from 0", "one that can: simplify it")
        except SYMPY_FAILS as error:
            self.fail(where, f"something that SymPy refuses ({type(error).__name__})", "a simpler formula")
        if not m.finite or value is not None and not value.is_Float:
            self.fail(where, f"'{self.source(where)}', which is not finite or not real", "a finite real number")
        if not small:
            self.too_large(where, m.degree, m.bits)
        if value is not None and not 1e-300 < abs(value) < 1e300:
            self.fail(where, "a number beyond 1e300 or below 1e-300", "one within")
        return e

    def too_large(self, where: ast.AST, degree: int, bits: int) -> NoReturn:
        if degree > MAX_DEGREE:
            self.fail(where, "too high a power", f"degrees up to {MAX_DEGREE}, and p, q up to 1000 in the power p/q")
        what = f"a number of {bits} bits" if bits > MAX_ROOT_BITS else "an expression that is too large"
        self.fail(where, what, f"exact numbers up to {MAX_BITS} bits ({MAX_ROOT_BITS} in roots) and a shorter formula")

    def walk(self, node: ast.expr) -> sp.Expr:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(node, f"more than {MAX_DEPTH} nested operators and calls", "a flatter formula")
        visit = self.VISIT.get(type(node))
        if visit is None:
            self.refuse(node)
        e = visit(self, node)
        self.depth -= 1
        return e

    def refuse(self, node: ast.expr) -> NoReturn:
        self.fail(node, SAID.get(type(node), type(node).__name__), "numbers, names, + - * / ** and function calls")

    def number(self, node: ast.Constant) -> sp.Expr:
        if type(node.value) not in (int, float):
            said = QUOTED.get(type(node.value), str(node.value))
            self.fail(node, said, "a real number, a name or a function call")
        literal = self.source(node)
        match = NUMBER.fullmatch(literal)
        if not match or len(match[1]) > MAX_DIGITS + 1 or len(match[3] or "") > 4 or int(match[3] or 0) > MAX_EXPONENT:
            self.fail(node, f"the number {literal[:20]}", f"{MAX_DIGITS} decimal digits and 1e+-{MAX_EXPONENT} at most")
        exact = Fraction(literal)
        return self.made(node, sp.Rational, exact.numerator, exact.denominator)

    def name(self, node: ast.Name) -> sp.Expr:
        name, g = node.id, self.grammar
        if name in g.variables:
            if name in ("t", "x") and {name, self.variable} == {"t", "x"}:
                self.fail(node, "the two variables 't' and 'x'", f"one: write {self.variable} for both")
            self.variable = name
            return g.variables[name]
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name in NO_NUMBER:
            self.fail(node, f"'{name}'", "a finite real number, or another name for the parameter")
        if name in VARIABLES:
            self.fail(node, f"the variable '{name}'", f"{' or '.join(g.variables)} here")
        if name in g.functions:
            self.fail(node, f"the function '{name}' without arguments", f"{name}(...)")
        if not NAME.fullmatch(name) or "__" in name:
            self.fail(node, f"the name {name[:40]!r}", "a letter first, then letters, digits and single _")
        self.free.append(node)
        return sp.Symbol(name, real=True, **self.parameters.get(name, {}))

    def unary(self, node: ast.UnaryOp) -> sp.Expr:
        if not isinstance(node.op, ast.USub | ast.UAdd):
            self.fail(node, "not or ~", "+ or - in front")
        e = self.walk(node.operand)
        return self.made(node, operator.neg, e) if isinstance(node.op, ast.USub) else e

    def binary(self, node: ast.BinOp) -> sp.Expr:
        """A chain a + b - c ... is read in a loop: it is long but not deep."""
        first: ast.expr = node
        chain: list[ast.BinOp] = []
        while isinstance(first, ast.BinOp):
            chain.append(first)
            first = first.left
        e = self.walk(first)
        for link in reversed(chain):
            right = self.walk(link.right)
            if isinstance(link.op, ast.Pow):
                e = self.power(link, link.left, e, right)
            elif isinstance(link.op, ast.Div):
                self.need_nonzero(link.right, right)
                e = self.made(link.right, operator.truediv, e, right)
            elif type(link.op) in BINARY:
                e = self.made(link, BINARY[type(link.op)], e, right)
            else:
                self.fail(link, f"the operator {type(link.op).__name__}", "+ - * / or **")
        return e

    def need_nonzero(self, where: ast.AST, e: sp.Expr, said: str = "{}") -> None:
        if e.is_zero:
            self.fail(where, "a division by zero", "a nonzero divisor")
        if self.grammar.whole_line and not is_nonzero(e):
            what = said.format(self.source(where))
            self.fail(where, f"cannot show that {what} has no real zero", "a divisor that has none, as 1 + t**2")

    def power(self, whole: ast.AST, where: ast.AST, base: sp.Expr, exponent: sp.Expr) -> sp.Expr:
        m, n = self.scale[base], self.scale[exponent]
        degree = self.scale.power_degree(base, exponent)
        grown = m.bits * n.top if isinstance(exponent, sp.Rational) else m.bits
        if degree > MAX_DEGREE or grown > (MAX_BITS if exponent.is_Integer else MAX_ROOT_BITS):
            self.too_large(whole, degree, grown)
        if self.grammar.whole_line:
            if exponent.has(t):
                if base.has(t) or not base.is_positive:
                    self.fail(where, "a power whose exponent depends on t", "a positive constant as its base")
            elif exponent.is_integer:
                if not exponent.is_nonnegative:
                    self.need_nonzero(where, base)
            elif not (is_nonnegative if exponent.is_positive else is_positive)(base):
                sign = ">=" if exponent.is_positive else ">"
                self.fail(where, f"cannot show that {self.source(where)} {sign} 0", "so for a root or a real power")
        return self.made(whole, operator.pow, base, exponent)

    def call(self, node: ast.Call) -> sp.Expr:
        if not isinstance(node.func, ast.Name):
            self.refuse(node.func)
        name, functions = node.func.id, self.grammar.functions
        if name not in functions:
            hint = f"; did you mean '{MEANT[name]}'?" if name in MEANT else self.did_you_mean(name, functions)
            wanted = "a known one" + hint if hint else f"one of {', '.join(functions)}"
            self.fail(node, f"the unknown function '{name[:40]}'", wanted)
        if node.keywords:
            self.fail(node.keywords[0], "a keyword argument", f"plain arguments of {name}")
        least, most = ARITY.get(name, (1, 1))
        if not least <= len(node.args) <= most:
            self.fail(node, f"{len(node.args)} arguments of {name}", f"{least}" + " or more" * (most > least))
        if name == "Piecewise":
            return self.made(node, functions[name], *self.branches(node))
        args = [self.walk(a) for a in node.args]
        if name == "sqrt":
            return self.power(node, node.args[0], args[0], HALF)
        if name in EXPONENTIAL and (degree := self.scale.power_degree(sp.E, args[0])) > MAX_DEGREE:
            self.too_large(node, degree, 0)
        if name == "hermite":
            self.check_hermite(node.args[0], *args)
        if name in SPLITTING and not args[0].is_extended_real and not self.is_modest(args[0]):
            what = f"cannot show that {self.source(node.args[0])} is real"
            self.fail(node.args[0], what, f"so for {name}, or something shorter")
        if name == "tan":
            self.need_nonzero(node.args[0], self.made(node, sp.cos, args[0]), "cos({})")
        if name == "log" and self.grammar.whole_line and not is_positive(args[0]):
            self.fail(node.args[0], f"cannot show that {self.source(node.args[0])} > 0", "so for the argument of log")
        return self.made(node, functions[name], *args)

    def is_modest(self, e: sp.Expr) -> bool:
        """Whether SymPy can expand e at once; it turns exp(10**9 t) into a polynomial in exp(t)."""
        m = self.scale[e]
        return m.size <= SMALL and m.degree <= SPLIT_DEGREE and (m.top <= MAX_DEGREE or not e.has(sp.exp))

    def check_hermite(self, where: ast.AST, n: sp.Expr, x: sp.Expr) -> None:
        if not isinstance(n, sp.Integer) or not 0 <= n <= MAX_DEGREE:
            self.fail(where, f"the degree {n}", f"an integer from 0 to {MAX_DEGREE}")
        m = self.scale[x]
        degree, bits = int(n) * max(1, m.degree), int(n) * m.bits
        if degree > MAX_DEGREE or bits > MAX_BITS or m.size * (int(n) // 2 + 1) > MAX_SIZE:
            self.too_large(where, degree, bits)

    def branches(self, node: ast.Call) -> list[sp.Tuple]:
        """The (expression, condition) pairs of a Piecewise, up to the first condition that is True."""
        pairs: list[sp.Tuple] = []
        for pair in node.args:
            if not isinstance(pair, ast.Tuple) or len(pair.elts) != 2:
                self.fail(pair, "a branch of another form", "(expression, condition)")
            pairs.append(sp.Tuple(self.walk(pair.elts[0]), self.condition(pair.elts[1])))
        if sp.true not in (c for _, c in pairs):
            self.fail(node.args[-1], "a Piecewise that may have no value", "a last branch: add (..., True)")
        return pairs

    def condition(self, node: ast.expr) -> sp.Basic:
        if isinstance(node, ast.Constant) and node.value is True:
            return sp.true
        if not isinstance(node, ast.Compare):
            got = SAID[ast.BoolOp] if isinstance(node, ast.BoolOp) else "something else"
            self.fail(node, f"{got} as condition", "a comparison with < <= > >=, or True")
        sides = [(side, self.walk(side)) for side in (node.left, *node.comparators)]
        relations = []
        for op, (_, left), (where, right) in zip(node.ops, sides, sides[1:], strict=False):
            if type(op) not in COMPARISONS:
                self.fail(where, "another comparison, as == or !=", "< <= > >=")
            if left.has(sp.Piecewise) or right.has(sp.Piecewise):
                self.fail(where, "a Piecewise within a condition", "it outside")
            r = COMPARISONS[type(op)](left, right, evaluate=_is_small(left, right))
            relations.append(r.reversed if left.is_number and isinstance(r, sp.core.relational.Relational) else r)
        return sp.And(*relations, evaluate=len(relations) == 1 or _is_small(*relations))

    VISIT: Mapping[type, Callable] = {
        ast.Constant: number,
        ast.Name: name,
        ast.UnaryOp: unary,
        ast.BinOp: binary,
        ast.Call: call,
    }
