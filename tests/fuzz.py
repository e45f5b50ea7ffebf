"""Random input for the whole pipeline, checked against sources that share nothing with it (acceptance F4).

    python -m tests.fuzz expressions --count 5000    texts, derived, emitted for NumPy, evaluated; against quadrature
    python -m tests.fuzz pairs --count 100000        pairs of atoms through the calculus, in balls; against quadrature
    python -m tests.fuzz texts --count 1000000       arbitrary texts through the parser and the catalog's loader
    python -m tests.fuzz mutants --count 300         formulas with one change, which the law table must refuse
    python -m tests.fuzz guided --seconds 300        the parser and the loader under atheris, which follows coverage

Each prints what it did and exits with 1 where something is wrong; what it found becomes a test with a name in
`tests/test_fuzz.py`. The same seed gives the same input. `--jobs` runs as many processes, each with a part.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import numpy as np
from scipy.special import erf, ndtr

TOLERANCE = 1e-8  # of sqrt(k11 k22), for the quadrature below, which reaches 1e-12
BEYOND = 1e-20  # what the quadrature does not see
REACH, WIDTH, NODES = 10.0, 0.5, 12  # of the quadrature: standard deviations beyond the peak, panels, points in each
STUCK = 2.0  # seconds that a text may take in the parser
LONG = 10.0  # seconds of the processor that an expression may take to derive; counted, no error
Function = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # t -> value, derivative


# Random members of the closed class ---------------------------------------------------------------------------------


class Piece(NamedTuple):
    """A formula as text, as numbers with their derivative, where it breaks or jumps, and beta of its exp(beta t)."""

    text: str
    f: Function
    breaks: tuple[float, ...] = ()
    jumps: bool = False
    rise: float = 0.0


def number(r: random.Random, signed: bool = True) -> Fraction:
    x = Fraction(r.choice([1, 1, 1, 2, 3, 5]), r.choice([1, 1, 2, 3, 4]))
    return -x if signed and r.random() < 0.4 else x


def linear(r: random.Random) -> tuple[str, float, float]:
    """`a*t + b`."""
    a, b = number(r), number(r) if r.random() < 0.6 else Fraction(0)
    return f"({a})*t + ({b})" if b else f"({a})*t", float(a), float(b)


def polynomial(r: random.Random) -> Piece:
    coefficients = [number(r) if r.random() < 0.4 else Fraction(0) for _ in range(r.randint(1, 4))]
    coefficients[-1] = coefficients[-1] or Fraction(1)
    text = " + ".join(f"({c})*t**{n}" if n else f"({c})" for n, c in enumerate(coefficients) if c)
    p = np.polynomial.Polynomial([float(c) for c in coefficients])
    return Piece(f"({text})", lambda t: (p(t), p.deriv()(t) + 0 * t))


def exponential(r: random.Random) -> Piece:
    a, b = r.choice([Fraction(0), Fraction(1, 2), Fraction(1), Fraction(2, 3)]), number(r) / 2
    if r.random() < 0.4:
        a, b = a or Fraction(1), Fraction(0)
    x, y = float(a), float(b)

    def f(t):
        value = np.exp(-x * t * t + y * t)
        return value, (y - 2 * x * t) * value

    return Piece(f"exp(-({a})*t**2 + ({b})*t)", f, rise=abs(y))


def gate(r: random.Random) -> Piece:
    text, a, b = linear(r)
    at, kind = -b / a, r.choice(sorted(GATES))
    form, f, breaks, jumps = GATES[kind]
    return Piece(form.format(text), lambda t: _chain(f, a, a * t + b), (at,) * breaks, jumps)


def _chain(f: Function, a: float, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    value, slope = f(x)
    return value, a * slope


PHI = 1 / math.sqrt(2 * math.pi)
GATES: dict[str, tuple[str, Function, bool, bool]] = {
    "step": ("Heaviside({})", lambda x: ((x > 0) * 1.0, 0 * x), True, True),
    "sign": ("sign({})", lambda x: (np.sign(x), 0 * x), True, True),
    "erf": ("erf({})", lambda x: (erf(x), 2 / math.sqrt(math.pi) * np.exp(-x * x)), False, False),
    "Phi": ("Phi({})", lambda x: (ndtr(x), PHI * np.exp(-x * x / 2)), False, False),
    "Abs": ("Abs({})", lambda x: (np.abs(x), np.sign(x)), True, False),
    "relu": ("Max({}, 0)", lambda x: (np.maximum(x, 0), (x > 0) * 1.0), True, False),
    "Min": ("Min({}, 0)", lambda x: (np.minimum(x, 0), (x < 0) * 1.0), True, False),
    "sin": ("sin({})", lambda x: (np.sin(x), np.cos(x)), False, False),
    "cos": ("cos({})", lambda x: (np.cos(x), -np.sin(x)), False, False),
}


def times(a: Piece, b: Piece) -> Piece:
    def f(t):
        (v, d), (w, e) = a.f(t), b.f(t)
        return v * w, d * w + v * e

    return Piece(f"{a.text}*{b.text}", f, a.breaks + b.breaks, a.jumps or b.jumps, a.rise + b.rise)


def plus(a: Piece, b: Piece) -> Piece:
    def f(t):
        (v, d), (w, e) = a.f(t), b.f(t)
        return v + w, d + e

    return Piece(f"{a.text} + {b.text}", f, a.breaks + b.breaks, a.jumps or b.jumps, max(a.rise, b.rise))


def atom(r: random.Random) -> Piece:
    """Polynomial times, perhaps, an exponential and a gate or a wave."""
    made = polynomial(r)
    if r.random() < 0.4:
        made = times(made, exponential(r))
    return times(made, gate(r)) if r.random() < 0.75 else made


def expression(r: random.Random) -> Piece:
    made = atom(r)
    for _ in range(r.choice([0, 0, 0, 1])):
        made = plus(made, atom(r))
    return made


# The oracle ---------------------------------------------------------------------------------------------------------

X, W = np.polynomial.legendre.leggauss(NODES)


def _panels(breaks: np.ndarray, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for exp(tilt x) and less, panels cut at the breaks, for every row of them: (rows, nodes)."""
    reach = WIDTH * math.ceil((REACH + tilt) / WIDTH)
    edges = np.arange(-reach, reach + WIDTH / 2, WIDTH)
    rows = np.concatenate([np.broadcast_to(edges, (len(breaks), len(edges))), np.clip(breaks, -reach, reach)], axis=1)
    rows = np.sort(rows, axis=1)
    low, half = rows[:, :-1, None], np.diff(rows, axis=1)[:, :, None] / 2
    nodes = (low + half * (1 + X)).reshape(len(rows), -1)
    return nodes, (half * W * PHI).reshape(len(rows), -1) * np.exp(-(nodes**2) / 2)


def expectation(f: Piece, g: Piece, q12: float, q11: float, q22: float) -> tuple[float, float]:
    """E[f(u) g(v)] and E[f'(u) g'(v)], for u = sqrt(q11) x and v = (q12 x + sqrt(delta) z)/sqrt(q11)."""
    if g.breaks and not f.breaks:  # the same panels for every x are found once
        return expectation(g, f, q12, q22, q11)
    a, s = math.sqrt(q11), math.sqrt(max(q11 * q22 - q12 * q12, 0.0) / q11)
    # f breaks at x = d/a; along z, g breaks at (d - q12 x/a)/s
    x, wx = (part[0] for part in _panels(np.array(f.breaks)[None, :] / a, a * f.rise + abs(q12) / a * g.rise))
    along = (np.array(g.breaks)[None, :] - (q12 / a) * x[:, None]) / s
    z, wz = _panels(along if g.breaks else along[:1], s * g.rise)
    v, dv = g.f((q12 / a) * x[:, None] + s * z)
    u, du = f.f(a * x)
    return float(np.sum(wx * u * np.sum(wz * v, axis=1))), float(np.sum(wx * du * np.sum(wz * dv, axis=1)))


def second_moment(f: Piece, q: float) -> tuple[float, float]:
    x, w = (part[0] for part in _panels(np.array(f.breaks)[None, :] / math.sqrt(q), 2 * math.sqrt(q) * f.rise))
    u, du = f.f(math.sqrt(q) * x)
    return float(np.sum(w * u * u)), float(np.sum(w * du * du))


def covariance(r: random.Random) -> tuple[float, float, float]:
    q11, q22 = (math.exp(r.uniform(math.log(0.1), math.log(2.0))) for _ in range(2))
    return r.uniform(-0.95, 0.95) * math.sqrt(q11 * q22), q11, q22


# The four programs --------------------------------------------------------------------------------------------------


class Late(BaseException):
    """Time is up; not an Exception, so that nothing on the way takes it for one."""


@contextmanager
def limited(seconds: float, processor: bool = True) -> Iterator[None]:
    """Raise Late inside after these seconds: of the processor, which other work does not shorten, or of the clock."""

    def stop(*_):
        raise Late

    timer, number = (signal.ITIMER_PROF, signal.SIGPROF) if processor else (signal.ITIMER_REAL, signal.SIGALRM)
    before = signal.signal(number, stop)
    signal.setitimer(timer, seconds, 0.5)  # again, should a callback swallow it
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(number, before)


class Outcome(NamedTuple):
    """What came of a part: how many of each kind, and what is wrong, as texts."""

    counts: Counter[str]
    wrong: list[str]


def reason(error: BaseException) -> str:
    """The kind of a refusal: its words without the formulas in it."""
    words = re.sub(r"[^A-Za-z ]+|\b\w\b", " ", str(error).splitlines()[-1])
    return " ".join(words.split()[:7])


def expressions(seed: int, count: int) -> Outcome:
    """Derive, emit, evaluate at two covariances, compare."""
    from dualcalc import codegen
    from dualcalc.atoms import NoClosedForm
    from dualcalc.dual import derive

    counts: Counter[str] = Counter()
    wrong = []
    for i in range(count):
        r = random.Random(f"expression {seed} {i}")
        made = expression(r)
        try:
            with limited(LONG), np.errstate(all="ignore"):
                dual = derive(made.text)
                module = codegen.load(codegen.emit(dual, "numpy"), "numpy")
        except NoClosedForm as error:
            counts[f"refused: {reason(error)}"] += 1
            continue
        except Late:
            counts[f"took over {LONG:g} s"] += 1
            continue
        except Exception as error:
            wrong.append(f"{made.text}: {type(error).__name__}: {error}")
            continue
        counts["derived"] += 1
        for _ in range(2):
            q12, q11, q22 = covariance(r)
            truth = expectation(made, made, q12, q11, q22)
            scales = [math.sqrt(x * y) for x, y in zip(second_moment(made, q11), second_moment(made, q22), strict=True)]
            for name, value, scale in zip(("k", "kdot"), truth, scales, strict=True):
                if name == "kdot" and dual.jumps:
                    continue
                got = float(getattr(module, name)(q12, q11, q22))
                counts["values"] += 1
                if not abs(got - value) <= TOLERANCE * scale + BEYOND:
                    wrong.append(
                        f"{made.text}: {name}{q12, q11, q22} = {got!r}, quadrature {value!r}, scale {scale:.3g}"
                    )
    return Outcome(counts, wrong)


def pairs(seed: int, count: int) -> Outcome:
    """E[f(u) g(v)] of two atoms by the calculus, in balls, and by quadrature."""
    import sympy as sp

    from dualcalc import atoms, balls, gaussian
    from dualcalc.parsing import parse_activation

    counts: Counter[str] = Counter()
    wrong = []
    for i in range(count):
        r = random.Random(f"pair {seed} {i}")
        f, g = atom(r), atom(r)
        if "sin(" in f.text + g.text or "cos(" in f.text + g.text:
            g = f  # waves meet gates in no member of the class
        q12, q11, q22 = covariance(r)
        try:
            with limited(LONG):
                first, second = (atoms.blocks(atoms.read(parse_activation(p.text))) for p in (f, g))
                terms = gaussian.expectation(first, second)[0]
                with balls.precision(128):
                    ball = balls.value(terms, balls.environment(q12, q11, q22))
                got = float(ball.mid())
        except atoms.NoClosedForm as error:
            counts[f"refused: {reason(error)}"] += 1
            continue
        except Late:
            counts[f"took over {LONG:g} s"] += 1
            continue
        except Exception as error:
            wrong.append(f"{f.text} | {g.text}: {type(error).__name__}: {error}")
            continue
        finally:
            if i % 500 == 499:
                sp.core.cache.clear_cache()
        value, _ = expectation(f, g, q12, q11, q22)
        scale = math.sqrt(second_moment(f, q11)[0] * second_moment(g, q22)[0])
        counts["values"] += 1
        if not (abs(got - value) <= TOLERANCE * scale + BEYOND and float(ball.rad()) <= 1e-12 * scale + BEYOND):
            wrong.append(f"{f.text} | {g.text}: {q12, q11, q22}: {got!r}, quadrature {value!r}, scale {scale:.3g}")
    return Outcome(counts, wrong)


# Texts --------------------------------------------------------------------------------------------------------------

WORDS = (
    "t x q11 q12 q22 A B pi e exp log sqrt sin cos tan sinh cosh tanh atan sign Abs Max Min Heaviside step erf erfc Phi"
    " phi sigmoid softplus relu Piecewise hermite polynomial True and or not if else lambda import __import__ eval exec"
    " open os.system getattr t.__class__ S Symbol sympify"
).split()
SIGNS = "+ - * / ** ( ) ( ) , , < > <= >= == != [ ] { } . : ; = @ % & | ^ ~ ! ' \" \\ # \n \t".split(" ")
NUMBERS = "0 1 2 3 1/2 0.5 1e3 1e-99 1e99 64 65 10**9 999999999999 .5 5. 1_0 0x1 1j".split()
VALID = (
    "t*Phi(A*t)",
    "Max(t, 0)**2",
    "Piecewise((t, t > 0), (exp(t) - 1, True))",
    "erf(t)*exp(-t**2)",
    "hermite(3, t)",
)
YAML = (
    '- {id: a, names: [A], expression: "t"}',
    "- id: my_gelu\n  names: [My GELU]\n  expression: t*Phi(A*t)\n  parameters: {A: {default: 2, positive: true}}\n",
    "- id: k\n  names: [K]\n  kernel: q12**2\n  notes: x\n  expected: [{q11: 1, q12: 0, q22: 1, k: 0, kdot: 0}]\n",
)
STRUCTURE = (
    "- ",
    ": ",
    "id",
    "names",
    "expression",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "!!python/object:os.system ",
    "|\n",
    ">",
)


def text(r: random.Random) -> str:
    """A formula with errors: tokens at random, a valid one with some changed, or any characters."""
    way = r.random()
    if way < 0.45:
        tokens = r.choices((*WORDS, *SIGNS, *NUMBERS), k=r.randint(1, 25))
        return r.choice(["", " "]).join(tokens)
    if way < 0.85:
        return _changed(r, list(r.choice(VALID)), (*WORDS, *SIGNS, *NUMBERS))
    if way < 0.95:
        return "".join(chr(r.randrange(1, 0x250)) for _ in range(r.randint(0, 40)))
    nest = r.choice(["(", "-", "exp(", "Max(t, ", "t**", "[", "Abs(1 + t*", "1/("])
    return nest * r.randint(1, 80) + "t" + ")" * r.randint(0, 80)


def document(r: random.Random) -> str:
    return _changed(r, list(r.choice(YAML)), (*STRUCTURE, *WORDS, *NUMBERS, "\x00", "\u2028", "é"))


def _changed(r: random.Random, parts: list[str], others: tuple[str, ...]) -> str:
    for _ in range(r.randint(1, 4)):
        at, way = r.randrange(len(parts) + 1), r.random()
        if way < 0.4:
            parts.insert(at, r.choice(others))
        elif way < 0.7 and parts:
            del parts[min(at, len(parts) - 1)]
        elif parts:
            parts[min(at, len(parts) - 1)] = r.choice(others)
    return "".join(parts)


ran: list[str] = []  # what was executed while it was watched
watching = False


def _known() -> bool:
    """Execution without the text: late imports, and products of monomials, which SymPy writes for n generators."""
    frame: FrameType | None = sys._getframe()
    known = ("importlib._bootstrap", "sympy/polys/monomials.py")
    while frame and not any(name in frame.f_code.co_filename for name in known):
        frame = frame.f_back
    return frame is not None


def _audit(event: str, arguments: tuple) -> None:
    if not watching or event == "exec" and _known():
        return
    if event in ("exec", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect"):
        ran.append(event)


def read_all(way: str, sample: str) -> str:
    """Put one text through a reader; how it ended."""
    from dualcalc import catalog
    from dualcalc.parsing import ParseError, parse_activation, parse_kappa, parse_kernel

    readers = {"activation": parse_activation, "kernel": parse_kernel, "kappa": parse_kappa}
    try:
        readers[way](sample) if way in readers else catalog._parse_entries("fuzz", sample)
    except (ParseError, catalog.CatalogError):
        return "refused"
    return "accepted"


def texts(seed: int, count: int) -> Outcome:
    """No crash, no hang, nothing executed: every text is accepted or refused with its own kind of error."""
    global watching
    sys.addaudithook(_audit)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    read_all("activation", "t"), read_all("yaml", YAML[0])  # what is imported late is imported now
    for i in range(count):
        r = random.Random(f"text {seed} {i}")
        way = r.choice(["activation", "activation", "kernel", "kappa", "yaml"])
        sample = document(r) if way == "yaml" else text(r)
        watching = True
        try:
            with limited(STUCK, processor=False):
                counts[f"{way}: {read_all(way, sample)}"] += 1
        except Late:
            wrong.append(f"{way} {sample!r}: over {STUCK:g} s")
        except BaseException as error:
            wrong.append(f"{way} {sample!r}: {type(error).__name__}: {error}")
        finally:
            watching = False
        if ran:
            wrong.append(f"{way} {sample!r}: executed {ran}")
            ran.clear()
    return Outcome(counts, wrong)


# Mutants ------------------------------------------------------------------------------------------------------------

CHANGES = (
    ("sign", r" \+ ", " - "),
    ("sign", r" - ", " + "),
    ("factor", r"(?<![\w.])0\.\d{4,}(?![\w.])", lambda m: repr(2 * float(m[0]))),
    ("factor", r"(?<![\w.])0\.(?:25|5|125)(?![\w.])", lambda m: repr(float(m[0]) / 2)),
    ("norm", r"\bq11\b", "q22"),
    ("norm", r"\bq22\b", "q11"),
    ("branch", r"\bq12\b", "abs(q12)"),
    ("branch", r"\bangle\(q12", "angle(-q12"),
    ("root", r"\broot\(", "("),
    ("power", r"\*\*2\b", "**3"),
)


def mutants(seed: int, count: int) -> Outcome:
    """One change in the body of k or kdot of a catalog entry's code; the law table must see it."""
    from dualcalc import catalog, codegen, verify

    counts: Counter[str] = Counter()
    alive: list[str] = []
    r = random.Random(f"mutant {seed}")
    known = [e for e in catalog.load().values() if e.closed_form]
    subjects: dict[str, tuple] = {}
    while sum(counts.values()) < count:
        entry = r.choice(known)
        if entry.id not in subjects:
            made = verify.subject(entry)
            subjects[entry.id] = made, codegen.emit(made.dual, "numpy")
        made, source = subjects[entry.id]
        reached = ("k00",) if made.kdot is None else ("k11", "k00")  # where s jumps, nobody calls k11
        start = min(source.index(f"def {name}(") for name in reached if f"def {name}(" in source)
        end = source.index("\ndef k(")
        kind, old, new = r.choice(CHANGES)
        shapes = [
            m.span() for m in re.finditer(r"filled\([^()]*\)", source[start:end])
        ]  # of these only the shape counts
        places = [m for m in re.finditer(old, source[start:end]) if not any(a <= m.start() < b for a, b in shapes)]
        if not places:
            continue
        place = r.choice(places)
        changed = place.expand(new) if isinstance(new, str) else new(place)
        at = start + place.start()
        line = source[: source.index("\n", at)].splitlines()[-1]
        if changed == place[0] or line.lstrip().startswith(("def ", '"""', "return where")) and "return" not in line:
            continue  # a declaration, no formula
        mutant = source[:at] + changed + source[at + len(place[0]) :]
        counts[kind] += 1
        try:
            with np.errstate(all="ignore"):
                module = codegen.load(mutant, "numpy")
                keywords = {s.name: float(v) for s, v in made.values.items()}
                spoilt = replace(made, k=partial(module.k, **keywords))
                spoilt = spoilt if made.kdot is None else replace(spoilt, kdot=partial(module.kdot, **keywords))
                seen = any(not result.passed for result in verify.check(spoilt))
        except Exception:  # it does not even run
            seen = True
        if not seen:
            alive.append(f"{entry.id}: {kind}, {place[0]!r} -> {changed!r} in: {line.strip()[:150]}")
    killed = count - len(alive)
    counts["killed"] = killed
    print(f"{killed} of {count} mutants killed, {100 * killed / count:.1f} %")
    return Outcome(counts, alive)


def guided(seconds: float) -> None:
    """Under atheris, until the time is up or something is found, which it prints and saves beside the corpus.

    The first byte says which reader. The corpus of one run is where the next one starts, until `build` is removed.
    """
    import atheris

    with atheris.instrument_imports(include=["dualcalc"]):
        from dualcalc import catalog, parsing  # noqa: F401
    ways = ("activation", "kernel", "kappa", "yaml")
    folder = Path("build/fuzz")
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    known = [(0, x.expression or "") for x in catalog.load().values()] + [(0, x) for x in VALID]
    known += [(1, x.kernel or "") for x in catalog.load().values()] + [(2, "c**2/2 + c/3")] + [(3, x) for x in YAML]
    for i, (way, sample) in enumerate(known):
        (corpus / f"known-{i}").write_bytes(bytes([way]) + sample.encode())
    words = {w for w in (*WORDS, *SIGNS, *NUMBERS, *STRUCTURE) if w}
    escaped = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in sorted(words))
    (folder / "words").write_text("".join(f'"{word}"\n' for word in escaped))
    for way in ways:  # what is imported late is imported now
        read_all(way, YAML[0] if way == "yaml" else "1")
    sys.addaudithook(_audit)

    def once(data: bytes) -> None:
        global watching
        watching, began = True, time.process_time()
        try:
            read_all(ways[data[0] % 4], data[1:].decode("utf-8", "replace")) if data else None
        finally:
            watching = False
        assert not ran, f"executed {ran}"
        assert time.process_time() - began < STUCK  # that of the clock is libFuzzer's, which a busy machine may take

    options = f"-max_total_time={seconds:g} -timeout=60 -max_len=400 -dict={folder}/words -rss_limit_mb=4096"
    options += f" -artifact_prefix={folder}/ -print_final_stats=1"
    atheris.Setup([sys.argv[0], *options.split(), str(corpus)], once)
    atheris.Fuzz()


PROGRAMS = {"expressions": expressions, "pairs": pairs, "texts": texts, "mutants": mutants}


def run(name: str, seed: int, count: int, jobs: int = 1) -> Outcome:
    """`count` samples in `jobs` processes, each with a stream of its own."""
    shares = [count // jobs + (i < count % jobs) for i in range(jobs)]
    if jobs == 1:
        return PROGRAMS[name](seed, count)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(PROGRAMS[name], [seed + 1000 * i for i in range(jobs)], shares))
    return Outcome(sum((p.counts for p in parts), Counter()), [w for p in parts for w in p.wrong])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*PROGRAMS, "guided"])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    if given.what == "guided":
        guided(given.seconds)
        sys.exit()
    began = time.perf_counter()
    done = run(given.what, given.seed, given.count, given.jobs)
    for kind, times_ in sorted(done.counts.items(), key=lambda item: -item[1]):
        print(f"{times_:8d}  {kind}")
    for sample in done.wrong[:40]:
        print("WRONG" if given.what != "mutants" else "ALIVE", sample)
    print(f"{given.what}: {given.count} in {time.perf_counter() - began:.0f} s, {len(done.wrong)} wrong")
    sys.exit(bool(done.wrong) and given.what != "mutants")
