"""The command line: `dualcalc derive | compile | hermite | bound | plot | phase | compare | nearest | doctor | kernel |
features | catalog`.

In a terminal it prints tables, trees and formulas in two dimensions; in a pipe plain text; with `--json` one JSON
document. Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 a check failed, 2 bad input, 3 no
closed form. SymPy, NumPy, JAX and rich are imported inside the commands, so that `--help` and `catalog list` are
instant; for that, this file may import from any other, like `__init__`.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import click

ENVIRONMENT = "DUALCALC_CATALOG"
TARGETS = ("jax", "numpy", "numba", "torch", "latex")  # codegen.TARGETS; importing it would import JAX
LIBRARIES = ("sklearn", "tinygp", "gpjax", "gpytorch", "neural-tangents")  # adapters.LIBRARIES, likewise
FAILED, BAD_INPUT, NO_CLOSED_FORM, INTERNAL = 1, 2, 3, 70


# Errors -----------------------------------------------------------------------------------------------------------


class Failure(click.ClickException):
    """A message on stderr and an exit code; of several lines, a caret among them, none is moved."""

    def __init__(self, message: str, code: int = BAD_INPUT):
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        start = "Error:\n" if "\n" in self.message else "Error: "
        click.echo(start + _clean(self.message), file=file, err=True)


def _clean(text: str) -> str:
    """Without the control characters that a formula or a file name may smuggle into a terminal."""
    return "".join(ch if ch.isprintable() or ch == "\n" else "?" for ch in text)


ADVICE = (
    (r'use get="nngp"', "use --get nngp"),
    (r'or get="nngp"', "or k alone"),
    (r"\bdc\.(compile|hermite)\b", r"`dualcalc \1`"),
    (r"Activation\('(\w+)', (\w+=[\d.]+)\)", r"\1(\2)"),
    (r"Activation\('([^']*)', (\w+=[\d.]+)\)", r"{\1}(\2)"),
    (r"give one, as (\w+=)", r"give one, as -p \1"),
    (r"Way out: certified=False", "Way out: no --certified"),
    (r"Way out: certified=True", "Way out: --certified"),
)
"""What the library advises, and how the command line says it."""


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turns what the library raises for bad input into a message and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except RecursionError:
            raise Failure("the formula is nested too deeply; write it more simply") from None
        except MemoryError:
            raise Failure("out of memory; take fewer rows") from None
        except OSError as error:
            raise Failure(f"{error.filename or 'file'}: {error.strerror or error}") from None
        except ValueError as error:
            atoms = sys.modules.get("dualcalc.atoms")  # imported where a NoClosedForm can come from
            refused = atoms is not None and isinstance(error, atoms.NoClosedForm)
            text = f"no closed form: {error}" if refused else str(error)
            for written, advice in ADVICE:
                text = re.sub(written, advice, text)
            raise Failure(text, NO_CLOSED_FORM if refused else BAD_INPUT) from None
        except Exception as error:
            if os.environ.get("DUALCALC_TRACEBACK"):
                raise
            what = f"internal error, {type(error).__name__}: {error}"
            raise Failure(f"{what}; please report it, with DUALCALC_TRACEBACK=1 set", INTERNAL) from error

    return run


# Output -----------------------------------------------------------------------------------------------------------


def _terminal() -> bool:
    return sys.stdout.isatty()


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, markup=False)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def _finite(x: float) -> float | str:
    """JSON has no infinity."""
    return x if math.isfinite(x) else str(x)


def _rows(rows: Sequence[tuple[str, ...]], head: tuple[str, ...]) -> str:
    """A table as plain text, columns aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows))
    return "\n".join(lines)


def _table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...], styles: Mapping[str, str] | None = None) -> None:
    """A table for whoever reads."""
    if not _terminal():
        click.echo(_rows(rows, head))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in head:
        table.add_column(name, style=(styles or {}).get(name))
    for row in rows:
        table.add_row(*(Text(cell, style="bold red" if cell.endswith("!") else "") for cell in row))
    _console().print(table)


def _panel(title: str, content: str) -> None:
    """A block of text that is not to be wrapped, with a title."""
    if not _terminal():
        click.echo(f"{title}\n{content}")
        return
    from rich.panel import Panel
    from rich.text import Text

    _console().print(Panel(Text(content, no_wrap=False), title=Text(title), title_align="left", border_style="cyan"))


def _say(text: str) -> None:
    """A remark, not a result."""
    click.echo(_clean(text), err=True)


@contextmanager
def _working(what: str) -> Iterator[None]:
    """A spinner on stderr, in a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr, in a terminal; the function given advances it."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, advance=1, description=f"{what} {done}")


# Files ------------------------------------------------------------------------------------------------------------


def _writable(path: Path, force: bool) -> None:
    """Refuse early what could not be written at the end."""
    if path == Path():
        raise Failure("an empty name or '.' came for a file to write; give it a name")
    if path.exists() and not path.is_file():
        raise Failure(f"{path}: not a plain file; choose another name")
    if os.path.lexists(path) and not force:
        raise Failure(f"{path} exists already; --force replaces it")
    if not path.parent.is_dir():
        raise Failure(f"{path.parent}: no such folder; create it first")


def write_file(path: Path, write: Callable[[Any], None], force: bool = False) -> None:
    """The file appears under its name complete or not at all; without `force` it replaces nothing."""
    _writable(path, force)
    temporary = path.parent / f".{path.name}.{os.urandom(6).hex()}.tmp"
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        _writable(path, force)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# Arguments --------------------------------------------------------------------------------------------------------

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?"
EXACT = rf"(?:{NUMBER}|[-+]?\d+/\d+)"
RESERVED = (
    "activation", "assume", "certified", "degree", "dual", "eps", "m", "norm", "norms", "nu", "order", "symbolic",
    "target", "tol",
)  # fmt: skip
"""Keywords of the library's functions: no parameter goes by them."""


def _parameters(context: Any, option: Any, values: tuple[str, ...]) -> dict[str, Any]:
    """`A=1.3`, `A=1/3` or, for a coefficient list, `a=1,-2,1/2`; exact texts, as the catalog reads them."""
    found: dict[str, Any] = {}
    for value in values:
        match = re.fullmatch(rf"\s*([A-Za-z]\w{{0,39}})\s*=\s*({EXACT}(?:\s*,\s*{EXACT})*)\s*", value, re.ASCII)
        if not match:
            raise click.BadParameter(f"got {_clean(value)[:60]!r}; expected NAME=NUMBER such as A=1.3 or A=1/3")
        name, numbers = match[1], [x.strip() for x in match[2].split(",")]
        if name in found:
            raise click.BadParameter(f"got {name} twice; remove one")
        if name in RESERVED:
            raise click.BadParameter(f"no activation has a parameter {name}")
        found[name] = numbers if len(numbers) > 1 else numbers[0]
    return found


def _folders(context: Any, option: Any, values: tuple[str, ...]) -> None:
    """Folders become part of the catalog of this process and of those that it starts."""
    for value in values:
        if not os.path.isdir(value):
            raise click.BadParameter(f"{_clean(value)!r} is no folder; correct the path")
    if values:
        named = [os.environ[ENVIRONMENT]] if os.environ.get(ENVIRONMENT) else []
        os.environ[ENVIRONMENT] = os.pathsep.join([*named, *map(os.path.abspath, values)])


EXPR = click.argument("expr")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
FORCE = click.option("--force", is_flag=True, help="Replace an existing file.")
PARAMETERS = click.option(
    "-p", "--parameter", "parameters", multiple=True, callback=_parameters, metavar="NAME=NUMBER",
    help="Value of a parameter, as A=1.3; repeat it for more.",
)  # fmt: skip
CATALOG = click.option(
    "--catalog", "folders", multiple=True, metavar="DIR", callback=_folders, expose_value=False,
    help=f"Add a folder of catalog files (also ${ENVIRONMENT}).",
)  # fmt: skip
PATH = click.Path(path_type=Path)
TOL = click.option(
    "--tol", type=click.FloatRange(1e-12, 0.1),
    help="Largest error, where there is no closed form; 1e-12 to 0.1  [default: 1e-6]",
)  # fmt: skip
NORMS = click.option(
    "--norms", type=(float, float), metavar="LEAST GREATEST",
    help="Norms sqrt(q) for which it holds, where there is no closed form; positive  [default: 1e-3 10]",
)  # fmt: skip


def _given(**options: Any) -> dict[str, Any]:
    """Those that were given; the library has the defaults."""
    return {name: value for name, value in options.items() if value is not None}


class Command(click.Command):
    """Says what to do with a formula that click takes for an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if any(parameter.name == "expr" for parameter in self.params):
                hint = f"{error.message} Put -- before a formula that begins with a minus sign."
                raise click.NoSuchOption(error.option_name, hint, error.possibilities, ctx) from None
            raise


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dualcalc")
@CATALOG
def main() -> None:
    """Compile an activation into the kernels of infinitely wide networks (NNGP and NTK).

    EXPR is a formula in t, such as "t*Phi(t)", or a catalog id, such as gelu. Put -- before one that begins with a
    minus sign.
    """


# derive -----------------------------------------------------------------------------------------------------------


def _dual(expr: str, parameters: Mapping[str, Any]) -> Any:
    from dualcalc.dual import derive

    return derive(expr, **parameters)


class Formulas(NamedTuple):
    """k and kdot as SymPy expressions; kdot is None where it is refused, and then there is the reason."""

    k: Any
    kdot: Any
    reason: str


def _formulas(dual: Any) -> Formulas:
    from dualcalc.atoms import NoClosedForm

    try:
        return Formulas(dual.k, dual.kdot, "")
    except NoClosedForm as reason:
        return Formulas(dual.k, None, str(reason))


def _facts(dual: Any) -> dict[str, str]:
    """What is known of a dual, in words."""
    named = {1: "even", -1: "odd"}
    facts = {
        "activation": str(dual.activation) if dual.activation is not None else "",
        "source": dual.source,
        "domain": dual.domain,
        "parity": named.get(dual.parity, ""),
        "homogeneous": "" if dual.homogeneity is None else f"of degree {dual.homogeneity}",
        "parameters": ", ".join(_with_default(s, dual.defaults) for s in dual.parameters),
    }
    return {name: value for name, value in facts.items() if value}


def _with_default(symbol: Any, defaults: Mapping[str, Any]) -> str:
    default = f" = {defaults[symbol.name]}" if symbol.name in defaults else ""
    return f"{symbol}{default}{' > 0' if symbol.is_positive else ''}"


def _tree(step: Any) -> dict[str, Any]:
    return {
        "rule": step.rule,
        "statement": step.statement,
        "latex": step.latex,
        "steps": [_tree(child) for child in step.children],
    }


def _formula_json(formulas: Formulas) -> dict[str, Any]:
    import sympy as sp

    kdot = None if formulas.kdot is None else str(formulas.kdot)
    latex = {"k": sp.latex(formulas.k), "kdot": None if kdot is None else sp.latex(formulas.kdot)}
    return {"k": str(formulas.k), "kdot": kdot, "kdot_refused": formulas.reason or None, "latex": latex}


def drawing(expr: Any, width: int) -> str:
    """An expression in two dimensions, a summand per block where a line cannot hold it; else as text."""
    import sympy as sp

    def draw(e: Any) -> str:
        return sp.pretty(e, use_unicode=True, wrap_line=False)

    def fits(drawn: str) -> bool:
        return max(map(len, drawn.splitlines())) <= width  # one that wraps cannot be read

    whole = draw(expr)
    if fits(whole):
        return whole
    blocks = [draw(e) for e in expr.as_ordered_terms()] if expr.is_Add else [whole]
    return "\n\n+\n\n".join(blocks) if all(map(fits, blocks)) else str(expr)


def _show_formulas(formulas: Formulas) -> None:
    if not _terminal():
        click.echo(f"k = {formulas.k}")
        click.echo(f"kdot: {formulas.reason}" if formulas.kdot is None else f"kdot = {formulas.kdot}")
        return
    width = _console().width - 4
    for name, expr in (("k = E[s(u) s(v)]", formulas.k), ("kdot = E[s'(u) s'(v)]", formulas.kdot)):
        if expr is None:
            _panel(name, formulas.reason)
            continue
        _panel(name, drawing(expr, width))


def _show_derivation(derivation: Any) -> None:
    if not _terminal():
        click.echo(str(derivation))
        return
    _console().print(derivation_tree(derivation.root))


def derivation_tree(root: Any) -> Any:
    """The steps of a derivation as a tree for a terminal."""
    from rich.text import Text
    from rich.tree import Tree

    def label(step: Any) -> Text:
        return Text.assemble((step.rule, "bold cyan"), "  ", step.statement)

    def grow(tree: Tree, step: Any) -> Tree:
        for child in step.children:
            grow(tree.add(label(child)), child)
        return tree

    return grow(Tree(label(root), guide_style="dim"), root)


@main.command(cls=Command)
@EXPR
@PARAMETERS
@CATALOG
@JSON
@guarded
def derive(expr: str, parameters: dict[str, Any], as_json: bool) -> None:
    """Print the closed forms k and kdot of EXPR, and how they come about."""
    with _working("deriving"):
        dual = _dual(expr, parameters)
        formulas, derivation = _formulas(dual), dual.derivation
    if as_json:
        defaults = {s.name: str(dual.defaults[s.name]) if s.name in dual.defaults else None for s in dual.parameters}
        _print_json(
            {
                "activation": None if dual.activation is None else str(dual.activation),
                "source": dual.source,
                **_formula_json(formulas),
                "domain": dual.domain,
                "parity": dual.parity,
                "homogeneity": dual.homogeneity,
                "jumps": [str(at) for at in dual.jumps],
                "parameters": defaults,
                "derivation": _tree(derivation.root),
            }
        )
        return
    _panel("Dual", "\n".join(f"{name:<12s} {value}" for name, value in _facts(dual).items()))
    _show_formulas(formulas)
    _show_derivation(derivation)


# compile ----------------------------------------------------------------------------------------------------------


@main.command("compile", cls=Command)
@EXPR
@click.option("--target", type=click.Choice(TARGETS), default="jax", show_default=True, help="What the code is for.")
@click.option("--to", "library", type=click.Choice(LIBRARIES), help="A module for this library instead.")
@click.option("-o", "--output", type=PATH, help="File to write; without it the code goes to stdout.")
@TOL
@NORMS
@PARAMETERS
@CATALOG
@FORCE
@JSON
@guarded
def compile_(
    expr: str,
    target: str,
    library: str | None,
    output: Path | None,
    tol: float | None,
    norms: tuple[float, float] | None,
    parameters: dict[str, Any],
    force: bool,
    as_json: bool,
) -> None:
    """Write a module that stands alone and defines k and kdot of EXPR.

    An activation without a closed form, such as tanh, is approximated to --tol for norms in --norms.
    """
    if library is not None and target != "jax":
        raise click.UsageError("give either --target or --to")
    if output is not None:
        _writable(output, force)
    with _working(f"compiling for {library or target}"):
        approximation = _given(tol=tol, norms=norms)
        if library is not None:
            from dualcalc.adapters import starting_source

            source, target = starting_source(expr, library, **approximation, **parameters), library
        else:
            from dualcalc.codegen import emit

            source = emit(expr, target, **approximation, **parameters)
    if output is not None:
        write_file(output, lambda file: file.write(source.encode()), force)
    if as_json:
        _print_json({"target": target, "file": str(output) if output else None, "source": source})
    elif output is not None:
        click.echo(f"wrote {output}: {len(source.splitlines())} lines for {target}")
    elif _terminal():
        from rich.syntax import Syntax

        lexer = "latex" if target == "latex" else "python"
        _console().print(Syntax(source.rstrip(), lexer, background_color="default", word_wrap=True))
    else:
        click.echo(source, nl=False)


# hermite, bound and plot ------------------------------------------------------------------------------------------

YES = {True: "yes", False: "no"}
DEGREE = click.option("--degree", type=int, default=20, show_default=True, help="Of the truncation.")
NORM = click.option("--norm", type=float, default=1.0, show_default=True, help="The norm sqrt(q11).")
CERTIFIED = click.option("--certified", is_flag=True, help="Proved enclosures, from ball arithmetic.")


@main.command(cls=Command)
@EXPR
@DEGREE
@NORM
@CERTIFIED
@PARAMETERS
@CATALOG
@JSON
@guarded
def hermite(expr: str, degree: int, norm: float, certified: bool, parameters: dict[str, Any], as_json: bool) -> None:
    """Print the orthonormal Hermite coefficients of EXPR, E[s(norm Z) h_j(Z)]/sqrt(j!), and what they leave out."""
    from dualcalc import expansions

    found = expansions.hermite(expr, degree, norm, certified=certified, **parameters)
    if certified:
        values, tail = [x.str(30) for x in found], found.tail.str(10)
    else:
        values = [float(x) for x in found]
        tail = max(expansions.second_moment(expr, norm, **parameters) - sum(x * x for x in values), 0.0)
    if as_json:
        _print_json({"norm": norm, "degree": degree, "coefficients": values, "tail": tail, "certified": certified})
        return
    rows = [(str(j), x if certified else f"{x: .17g}") for j, x in enumerate(values)]
    _table(rows, ("j", "coefficient"))
    _say(f"sum of the squares beyond degree {degree}: {tail if certified else f'{tail:.3g}'}")


@main.command(cls=Command)
@EXPR
@DEGREE
@NORM
@click.option("--norm2", type=float, help="The norm sqrt(q22)  [default: that of --norm]")
@click.option("--cosine", type=click.FloatRange(-1, 1), default=1.0, show_default=True, help="Of the angle.")
@CERTIFIED
@PARAMETERS
@CATALOG
@JSON
@guarded
def bound(
    expr: str,
    degree: int,
    norm: float,
    norm2: float | None,
    cosine: float,
    certified: bool,
    parameters: dict[str, Any],
    as_json: bool,
) -> None:
    """Print the bounds on the error of k and kdot of EXPR when their series in the cosine ends at --degree."""
    from dualcalc.bounds import error_bounds

    found = error_bounds(expr, degree, norm, norm2, cosine, certified=certified, **parameters)
    if as_json:
        keys = ("name", "of", "approximant", "value", "relative", "proved", "certified", "formula", "source")
        plain = (float, str, bool)
        values = [{k: v if isinstance(v := getattr(x, k), plain) else float(v) for k in keys} for x in found]
        _print_json([{k: _finite(v) if isinstance(v, float) else v for k, v in row.items()} for row in values])
        return
    rows = [
        (
            x.of,
            x.approximant,
            x.name,
            f"{float(x.value):.3g}",
            f"{float(x.relative):.3g}",
            YES[x.proved],
            YES[x.certified],
        )
        for x in found
    ]
    _table(rows, ("of", "approximant", "bound", "absolute", "relative", "theorem", "certified"))
    _say("theorem: the formula is proved at this degree; certified: its number is rounded up from balls, not float64")


@main.command(cls=Command)
@EXPR
@click.option("-o", "--output", type=PATH, required=True, help="File to write: .png, .svg or .pdf.")
@PARAMETERS
@CATALOG
@FORCE
@guarded
def plot(expr: str, output: Path, parameters: dict[str, Any], force: bool) -> None:
    """Draw EXPR: the activation, its dual, its Hermite spectrum, and the error against the degree."""
    _writable(output, force)
    try:
        from dualcalc import plots
    except ModuleNotFoundError as error:
        raise Failure(f"{error.name} is missing: pip install 'dualcalc[plots]'") from None
    with _working("drawing"):
        plots.save(plots.overview(expr, **parameters), output)
    click.echo(f"wrote {output}")


# phase, compare, nearest and doctor -------------------------------------------------------------------------------

PICTURE = click.option("-o", "--output", type=PATH, help="Draw it: a file that ends in .png, .svg or .pdf.")


def _draw(panels: Callable[[], list[Any]], output: Path | None, title: str) -> None:
    """The picture, where one is asked for."""
    if output is None:
        return
    try:
        from dualcalc import plots
    except ModuleNotFoundError as error:
        raise Failure(f"{error.name} is missing: pip install 'dualcalc[plots]'") from None
    with _working("drawing"):
        drawn = panels()
        plots.save(plots.draw(drawn, columns=len(drawn), title=title), output)
    _say(f"wrote {output}")


def _drawable(output: Path | None, force: bool) -> None:
    if output is not None:
        _writable(output, force)
        if output.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise Failure(f"{output.name} came; expected a file name that ends in .png, .svg or .pdf")


@main.command(cls=Command)
@EXPR
@click.option("--W-std", "W_std", type=click.FloatRange(0), default=1.5, show_default=True, help="Of the weights.")
@click.option("--b-std", type=click.FloatRange(0), default=0.1, show_default=True, help="Of the biases.")
@PICTURE
@PARAMETERS
@CATALOG
@FORCE
@JSON
@guarded
def phase(
    expr: str,
    W_std: float,
    b_std: float,
    output: Path | None,
    parameters: dict[str, Any],
    force: bool,
    as_json: bool,
) -> None:
    """What depth does to EXPR behind Dense(W_std, b_std): ordered or chaotic, and the critical line between them."""
    _drawable(output, force)
    with _working("computing"):
        from dualcalc import tools

        found = tools.phase(expr, W_std, b_std, **parameters)
    _draw(lambda: tools.phase_panels(found), output, f"s(t) = {found.activation}")
    if as_json:
        names = ("activation", "W_std", "b_std", "name", "q", "chi_1", "c", "depth_scale")
        plain = {name: _finite(v) if isinstance(v := getattr(found, name), float) else v for name in names}
        lists: dict[str, tuple[Any, ...]] = {"fixed": found.fixed, "line": found.line}
        _print_json(plain | {name: [point._asdict() for point in points] for name, points in lists.items()})
        return
    facts = (
        ("phase", f"{found.name}, at W_std = {found.W_std:g}, b_std = {found.b_std:g}"),
        ("q*", f"{found.q:.6g}"),
        ("chi_1", f"{found.chi_1:.6g}"),
        ("c*", f"{found.c:.6g}"),
        ("depth scale", f"{found.depth_scale:.4g} layers"),
        *(("unstable", f"q = {f.q:.6g}, V'(q) = {f.slope:.4g}") for f in found.fixed if f.slope > 1 + 1e-9),
    )
    _panel("Phase", "\n".join(f"{name:<12s} {value}" for name, value in facts))
    if not found.line:
        _say("no critical line: chi_1 is not 1 at any fixed point")
        return
    middle = [p for p in found.line if 1e-3 < p.q < 1e2] or found.line
    some = middle[:: max(len(middle) // 8, 1)]
    rows = [(f"{p.q:.4g}", f"{p.W_std:.6g}", f"{p.b_std:.6g}", YES[p.stable]) for p in some]
    rows = list({row[1:]: row for row in reversed(rows)}.values())[::-1]  # of homogeneous activations one point
    _table(rows, ("critical: q", "W_std", "b_std", "stable"))


@main.command(cls=Command)
@click.argument("exprs", nargs=-1, required=True, metavar="EXPR EXPR...")
@click.option("--degrees", type=click.IntRange(0, 100), default=8, show_default=True, help="Of the spectra.")
@click.option("--dimension", type=click.IntRange(3), default=10, show_default=True, help="Of the sphere's space.")
@PICTURE
@CATALOG
@FORCE
@JSON
@guarded
def compare(
    exprs: tuple[str, ...], degrees: int, dimension: int, output: Path | None, force: bool, as_json: bool
) -> None:
    """Two or more activations side by side at unit norm: duals, Hermite spectra, eigenvalues on the sphere."""
    _drawable(output, force)
    with _working("computing"):
        from dualcalc import tools

        found = tools.compare(exprs, degrees=degrees, dimension=dimension)
    _draw(lambda: tools.compare_panels(found, exprs), output, "")
    if as_json:
        keys = ("name", "top", "cosines", "values", "spectrum", "eigenvalues")
        rows = [{k: v.tolist() if hasattr(v := getattr(f, k), "tolist") else v for k in keys} for f in found]
        _print_json([{**row, "dimension": dimension} for row in rows])
        return
    names = tuple(_clean(f.name) for f in found)

    def block(head: str, labels: Iterable[str], columns: Iterable[Any]) -> None:
        cells = zip(
            labels, *([""] * (degrees + 1) if c is None else [f"{x:.4g}" for x in c] for c in columns), strict=True
        )
        _table(list(cells), (head, *names))

    block("k(c)/k(1), c =", [f"{c:g}" for c in found[0].cosines], [f.values for f in found])
    block("mass of degree", map(str, range(degrees + 1)), [f.spectrum for f in found])
    block(f"eigenvalue, d = {dimension}, degree", map(str, range(degrees + 1)), [f.eigenvalues for f in found])


@main.command(cls=Command)
@EXPR
@click.option("--count", type=click.IntRange(1), default=8, show_default=True, help="Of entries that are shown.")
@click.option(
    "--by",
    type=click.Choice(["kernel", "hermite"]),
    default="kernel",
    show_default=True,
    help="Distance in L2 over the cosine, or of the Hermite masses.",
)
@PARAMETERS
@CATALOG
@JSON
@guarded
def nearest(expr: str, count: int, by: str, parameters: dict[str, Any], as_json: bool) -> None:
    """The catalog's activations whose kernels at unit norm are nearest to that of EXPR, up to scale."""
    with _working("comparing with the catalog"):
        from dualcalc import tools

        found = tools.nearest(expr, by, **parameters)
    if as_json:
        _print_json({"entries": [near._asdict() for near in found.entries[:count]], "skipped": found.skipped})
        return
    rows = [(near.id, f"{near.distance:.3g}", f"{near.scale:.4g}") for near in found.entries[:count]]
    _table(rows, ("id", "distance", "scale"), {"id": "bold cyan"})
    for id, reason in found.skipped.items():
        _say(f"skipped {id}: {reason}")


@main.command()
@click.argument("file", type=PATH)
@click.option("--kernel", "is_kernel", is_flag=True, help="FILE is a kernel matrix (n, n), not data.")
@click.option("--network", help="Also look at the kernel of this network on the data, as in: dualcalc kernel.")
@click.option("--get", type=click.Choice(["ntk", "nngp"]), default="ntk", show_default=True, help="Which kernel of it.")
@CATALOG
@JSON
@guarded
def doctor(file: Path, is_kernel: bool, network: str | None, get: str, as_json: bool) -> None:
    """Look for trouble in FILE, a matrix of data or a kernel, .npy or .csv, and say what to do; exit with 1 if any."""
    if is_kernel and network is not None:
        raise click.UsageError("give either --kernel, for a kernel matrix, or --network, for data")
    layers = None if network is None else read_network(network)
    values = _numbers(file)
    with _working("looking"):
        from dualcalc import tools

        if is_kernel:
            found = tools.examine_kernel(values)
        else:
            found = tools.examine_data(values, None if layers is None else _network(layers), get)
    if as_json:
        _print_json([finding._asdict() for finding in found])
    else:
        for finding in found:
            click.echo(f"{finding.name}: {finding.found}.\n  Remedy: {finding.remedy}.")
        rows, columns = values.shape
        click.echo(f"{'kernel' if is_kernel else 'data'} {rows} x {columns}, {values.dtype}: {len(found)} warnings")
    if found:
        raise click.exceptions.Exit(FAILED)


def _numbers(path: Path) -> Any:
    """The matrix in a .npy or .csv file, real, not finite entries included; a first line of names is left out."""
    import numpy as np

    if path.suffix.lower() not in (".npy", ".csv"):
        raise Failure(f"{path}: expected a file that ends in .npy or .csv")
    try:
        if path.suffix.lower() == ".npy":
            data = np.load(path, allow_pickle=False)
        else:
            with open(path, encoding="utf-8-sig") as file:
                lines = file.read().splitlines()
            named = bool(lines) and not all(map(_is_number, lines[0].split(",")))
            data = np.loadtxt(lines[named:], delimiter=",", ndmin=2) if lines[named:] else np.empty((0, 0))
    except (ValueError, EOFError) as error:
        raise Failure(f"{path}: no matrix that can be read ({error}); write it with numpy.save or savetxt") from None
    if not isinstance(data, np.ndarray) or data.ndim != 2 or 0 in data.shape or data.dtype.kind not in "biuf":
        got = f"shape {data.shape}, type {data.dtype}" if isinstance(data, np.ndarray) else "an archive"
        raise Failure(f"{path}: got {got}; expected one matrix of real numbers, a row per point")
    return data


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# catalog ----------------------------------------------------------------------------------------------------------


@main.group("catalog")
@CATALOG
def catalog_() -> None:
    """The activations and kernels that dualcalc knows by name."""


def _record(entry: Any) -> dict[str, Any]:
    """What a listing says of an entry."""
    return {
        "id": entry.id,
        "title": entry.title,
        "expression": entry.expression,
        "kernel": entry.kernel,
        "table1": entry.table1,
        "references": {role: list(keys) for role, keys in entry.references if keys},
        "closed_form": entry.closed_form,
    }


def _closed(closed: bool, jumps: bool) -> str:
    return "no" if not closed else "k only" if jumps else "yes"


@catalog_.command("list")
@CATALOG
@JSON
@guarded
def list_(as_json: bool) -> None:
    """All entries, those of the paper's Table 1 first."""
    from dualcalc import catalog

    entries = list(catalog.load().values())
    if as_json:
        _print_json([_record(entry) for entry in entries])
        return
    rows = [
        (e.id, e.title, e.formula, "" if e.table1 is None else str(e.table1), _closed(e.closed_form, e.jumps))
        for e in entries
    ]
    _table(rows, ("id", "title", "formula", "table 1", "closed form"), {"id": "bold cyan", "title": "bold"})


@catalog_.command()
@click.argument("id")
@CATALOG
@JSON
@guarded
def show(id: str, as_json: bool) -> None:
    """One entry: its names, parameters, references, and the formulas k and kdot."""
    from dualcalc import catalog

    known = catalog.load()
    entry = known.entry(id)
    cited = dict.fromkeys(key for _, keys in entry.references for key in keys)
    references = {key: known.references[key] for key in cited}
    refused = ""
    with _working("deriving"):
        from dualcalc.atoms import NoClosedForm

        try:
            dual = _dual(id, {})
            formulas = _formulas(dual)
        except NoClosedForm as reason:
            refused = str(reason)
    if as_json:
        more: dict[str, Any] = {
            "names": list(entry.names),
            "parameters": {name: p.model_dump(mode="json") for name, p in entry.parameters.items()},
            "notes": entry.notes,
            "file": str(entry.path),
            "line": entry.line,
            "publications": {key: reference.model_dump(mode="json") for key, reference in references.items()},
            "refused": refused or None,
        }
        _print_json(_record(entry) | more | ({} if refused else {"domain": dual.domain} | _formula_json(formulas)))
        return
    rows = [
        ("names", "; ".join(entry.names)),
        ("expression" if entry.kernel is None else "kernel", entry.formula),
        *(("parameter", _describe(name, p)) for name, p in entry.parameters.items()),
        *((("table 1", f"row {entry.table1}"),) if entry.table1 else ()),
        *((role, "; ".join(_cite(references[key]) for key in keys)) for role, keys in entry.references if keys),
        *((("notes", entry.notes),) if entry.notes else ()),
        ("file", f"{entry.path}:{entry.line}"),
        ("closed form", f"no: {refused}" if refused else f"{_closed(True, formulas.kdot is None)}, for {dual.domain}"),
    ]
    _panel(entry.id, "\n".join(f"{name:<12s} {value}" for name, value in rows))
    if not refused:
        _show_formulas(formulas)


def _describe(name: str, parameter: Any) -> str:
    default = parameter.default
    value = ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    signs = [word for word in ("positive", "nonnegative", "integer") if getattr(parameter, word)]
    details = "; ".join(part for part in (" ".join(signs), parameter.description) if part)
    return f"{name} = {value}" + (f" ({details})" if details else "")


def _cite(reference: Any) -> str:
    where = reference.doi or (f"arXiv:{reference.arxiv}" if reference.arxiv else "")
    return f"{reference.author} ({reference.year}), {reference.title}, {reference.venue}{', ' + where if where else ''}"


@catalog_.command("verify")
@click.argument("ids", nargs=-1)
@click.option("--folder", type=PATH, help="Verify the entries of this folder.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Stream of the random points.")
@click.option("--workers", type=click.IntRange(1, 64), help="Processes  [default: one per core, at most 4]")
@CATALOG
@JSON
@guarded
def verify_(ids: tuple[str, ...], folder: Path | None, seed: int, workers: int | None, as_json: bool) -> None:
    """Check entries (all, unless IDS or a folder are given) against independent values; exit with 1 if one fails."""
    from dualcalc import catalog

    if folder is not None:
        _folders(None, None, (str(folder),))
    known = catalog.load()
    chosen = {id: known.entry(id) for id in ids} if ids else dict(known)
    if folder is not None:
        chosen = {id: entry for id, entry in chosen.items() if entry.path.parent == folder.resolve()}
    if not chosen:
        raise Failure(f"{folder}: no entries there to verify")
    start = time.perf_counter()
    with _working("loading"):
        from dualcalc import verify
    if workers is None:
        workers = 1 if len(chosen) < 6 else _cores()  # a process needs seconds to import SymPy
    with _progress("verifying", len(chosen)) as step:
        reports = verify.verify_all(chosen, lambda report: step(report.id), workers=workers, seed=seed)
    failed = [report for report in reports if not report.passed]
    if as_json:
        _print_json([_report_json(report) for report in reports])
    else:
        _show_reports(reports, verify.LAWS)
        passed = f"{len(reports) - len(failed)} of {len(reports)} entries pass"
        click.echo(f"{passed}, {time.perf_counter() - start:.0f} s")
    if failed:
        raise click.exceptions.Exit(FAILED)


def _report_json(report: Any) -> dict[str, Any]:
    laws = {
        r.law: {"error": _finite(r.error), "tolerance": r.tolerance, "passed": r.passed, "note": r.note or None}
        for r in report.results
    }
    return {"id": report.id, "passed": report.passed, "reason": report.reason or None, "laws": laws}


def _show_reports(reports: list[Any], laws: tuple[Any, ...]) -> None:
    """A row per entry, a column per law; in a narrow terminal only the law nearest to its tolerance."""
    head = ("entry", *(law.name for law in laws))
    rows = []
    for report in reports:
        errors = {r.law: f"{r.error:.0e}{'' if r.passed else '!'}" for r in report.results}
        rows.append((report.id, *(errors.get(law.name, "") for law in laws)))
    measured = [(report, row) for report, row in zip(reports, rows, strict=True) if any(row[1:])]
    if measured and (not _terminal() or _console().width >= 8 * len(laws) + 30):
        _table([row for _, row in measured], head, {"entry": "bold cyan"})
    elif measured:
        worst = [(report.id, max(report.results, key=lambda r: r.severity)) for report, _ in measured]
        cells = [(id, r.law, f"{r.error:.0e}{'' if r.passed else '!'}", f"{r.tolerance:.0e}") for id, r in worst]
        _table(cells, ("entry", "worst law", "error", "tolerance"), {"entry": "bold cyan"})
    for report in reports:
        if report.passed and report.reason:
            click.echo(f"{report.id}: no closed form: {report.reason}")
        for r in report.failures:
            click.echo(
                f"{report.id}: FAILED {r.law}: error {r.error:.2g}, tolerance {r.tolerance:.0e}. {r.note}".rstrip()
            )


@catalog_.command()
@click.option("--id", "id_", help="Permanent name: lower-case letters, digits, underscores.")
@click.option("--expression", help="The activation, a formula in t.")
@click.option("--kernel", help="Or a bare kernel, a formula in q11, q12, q22.")
@click.option("--name", help="Display name.")
@click.option("--notes", help="What it is used for and where it comes from.")
@click.option("--folder", type=PATH, default=Path("catalog"), show_default=True, help="Where the file goes.")
@PARAMETERS
@CATALOG
@JSON
@guarded
def new(
    id_: str | None,
    expression: str | None,
    kernel: str | None,
    name: str | None,
    notes: str | None,
    folder: Path,
    parameters: dict[str, Any],
    as_json: bool,
) -> None:
    """Derive and verify an activation, then write it as a catalog file. -p gives parameters their defaults."""
    if expression is not None and kernel is not None:
        raise click.UsageError("give either --expression or --kernel, not both")
    id_ = _ask(id_, "--id", "id (lower-case letters, digits, underscores)")
    if kernel is None:
        expression = _ask(expression, "--expression", "activation, a formula in t")
    name = name or (click.prompt("display name", default=id_) if _asks() else id_)
    from dualcalc import catalog

    fields: dict[str, Any] = {"expression": expression, "kernel": kernel, "name": name, "parameters": parameters}
    fields |= {} if notes is None else {"notes": notes}
    with tempfile.TemporaryDirectory() as draft:  # read back as it would be from the catalog
        catalog.new_entry(draft, id_, **fields)
        entry = catalog.load(draft).entry(id_)
    _writable(folder / f"{id_}.yaml", force=False)
    with _working("deriving and verifying"):
        from dualcalc import verify

        report = verify.verify(entry)
    if report.reason:
        raise Failure(f"no closed form: {report.reason}\nnothing was written", NO_CLOSED_FORM)
    if not report.passed:
        first = report.failures[0]
        unread = first.law == verify.DERIVED
        raise Failure(f"{first.note if unread else report}\nnothing was written", BAD_INPUT if unread else FAILED)
    path = catalog.new_entry(folder, id_, **fields)
    if as_json:
        _print_json({"file": str(path), **_report_json(report)})
    else:
        click.echo(f"wrote {path}; add its references there. Use it with --catalog {folder}")


@catalog_.command()
@click.option("--out", type=PATH, default=Path("site"), show_default=True, help="Folder for the pages; made if needed.")
@click.option("--id", "ids", multiple=True, help="Only this entry; repeat it for more.")
@click.option("--workers", type=click.IntRange(1, 64), help="Processes  [default: one per core, at most 4]")
@CATALOG
@FORCE
@JSON
@guarded
def site(out: Path, ids: tuple[str, ...], workers: int | None, force: bool, as_json: bool) -> None:
    """Write the catalog as static pages that open in a browser, without a server or a network."""
    from dualcalc import catalog

    if out.exists() and not out.is_dir():
        raise Failure(f"{out}: not a folder; choose another name")
    if out.is_dir() and any(out.iterdir()) and not force and not (out / "index.json").exists():
        raise Failure(f"{out} holds other files; choose an empty folder, or --force to write among them")
    known = catalog.load()
    chosen = {id: known.entry(id) for id in ids} if ids else dict(known)
    with _working("loading"):
        try:
            from dualcalc import site as pages
        except ModuleNotFoundError as error:
            raise Failure(f"{error.name} is missing: pip install 'dualcalc[site]'") from None
    workers = workers or (1 if len(chosen) < 6 else _cores())
    with _progress("pages", len(chosen)) as step:
        made = pages.build(chosen, known.references, out, workers=workers, progress=step)
    if as_json:
        _print_json(made._asdict() | {"home": str(made.home)})
    else:
        size = f"{made.size / 2**20:.1f} MiB"
        click.echo(f"wrote {made.home} and {made.pages - 1} entries: {size}, {made.seconds:.0f} s")


def _cores() -> int:
    """Processes to use where none are asked for."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 4)


def _asks() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _ask(value: str | None, option: str, question: str) -> str:
    """The value, or the answer of whoever sits at the terminal."""
    if value is not None:
        return value
    if not _asks():
        raise click.UsageError(f"{option} is missing; outside a terminal nothing is asked")
    return click.prompt(question)


# kernel -----------------------------------------------------------------------------------------------------------

TOKEN = re.compile(
    rf"\s*(?:(?P<number>{NUMBER})(?![\w.])|(?P<name>[A-Za-z]\w{{0,39}})|\{{(?P<formula>[^{{}}]*)\}}|(?P<mark>[(),=\[\]]))",
    re.ASCII,
)


class LayerText(NamedTuple):
    """One layer as it was written, its numbers with their names; `residual` with the layers in it."""

    name: str
    named: dict[str, Any] = {}
    inner: tuple[Any, ...] = ()
    formula: bool = False


LAYERS = {
    "dense": ("Dense", ("W_std", "b_std"), ()),
    "conv": ("Conv", ("window",), ("strides", "padding", "W_std", "b_std")),
    "avgpool": ("AvgPool", ("window",), ("strides",)),
    "globalavgpool": ("GlobalAvgPool", (), ()),
    "flatten": ("Flatten", (), ()),
    "layernorm": ("LayerNorm", (), ()),
    "dropout": ("Dropout", ("rate",), ()),
    "scale": ("Scale", ("factor",), ()),
}
"""Per word the layer, its numbers in their order, and what else it takes by name."""

SIZES = {"window", "strides"}


class _Network:
    """Reads `layer layer ...`; layer = name or {formula}, and optionally (number, ..., name=number or [numbers]);
    residual(layer layer ...)."""

    def __init__(self, text: str):
        self.text, self.tokens, self.at = text, [], 0
        place = 0
        while place < len(text.rstrip()):
            match = TOKEN.match(text, place)
            if not match or match.lastgroup is None:
                self.fail(
                    len(text) - len(text[place:].lstrip()), "expected a name, {formula}, number or one of ( ) , ="
                )
            group = match.lastgroup
            self.tokens.append((group, match[group], match.start(group) - (group == "formula"), match.end()))
            place = match.end()
        self.tokens.append(("end", "", len(text), len(text)))

    def fail(self, column: int, reason: str) -> NoReturn:
        start = max(0, column - 60)
        raise ValueError(f"{self.text[start : start + 120]}\n{' ' * (column - start)}^\n{reason}")

    def take(self, kind: str, value: str | None = None) -> str | None:
        """The next token's text, if it is of this kind, else None."""
        found, text, _, _ = self.tokens[self.at]
        if found != kind or value not in (None, text):
            return None
        self.at += 1
        return text

    def need(self, kind: str, expected: str, value: str | None = None) -> str:
        text = self.take(kind, value)
        if text is None:
            self.fail(self.tokens[self.at][2], f"expected {expected}")
        return text

    def layers(self, inside: bool = False) -> list[LayerText]:
        found: list[LayerText] = []
        while self.tokens[self.at][0] != "end" and not (inside and self.tokens[self.at][1] == ")"):
            before = self.tokens[self.at - 1][3] if found else -1
            if before == self.tokens[self.at][2]:
                self.fail(before, "expected a blank between layers")
            found.append(self.layer())
        if not found:
            self.fail(self.tokens[self.at][2] if inside else 0, "expected layers, such as: dense(1.5,0.1) gelu dense")
        return found

    def layer(self) -> LayerText:
        start = self.tokens[self.at][2]
        formula = self.take("formula")
        name = formula if formula is not None else self.need("name", "a layer: dense, a catalog id, or {formula}")
        word = name.lower() if formula is None else ""
        if name != word and word in (*LAYERS, "residual"):
            self.fail(start, f"got the layer {name}; did you mean {word!r}?")
        if word == "residual":
            self.need("mark", "( and layers after residual, as in residual(relu dense)", "(")
            inner = self.layers(inside=True)
            self.need("mark", ")", ")")
            return LayerText(name, {}, tuple(inner))
        _, order, others = LAYERS.get(word, ("", (), ()))
        numbers: list[Any] = []
        named: dict[str, Any] = {}
        glued = self.tokens[self.at][2] == self.tokens[self.at - 1][3]
        if glued and self.take("mark", "("):
            if word in LAYERS and not order:
                self.fail(start, f"{word} takes no arguments: write it without parentheses")
            while True:
                key = self.take("name")
                if key is not None:
                    self.need("mark", f"= and a number after the name {key}, as W_std=1.5, or a finite number", "=")
                    if key in named or key in RESERVED or key == "spec":
                        self.fail(self.tokens[self.at - 2][2], f"got {key} twice, or a name that no layer has")
                    named[key] = self.take("name") if (word, key) == ("conv", "padding") else self.value()
                else:
                    numbers.append(self.value())
                if self.take("mark", ")"):
                    break
                self.need("mark", ", or )", ",")
        if word in LAYERS:
            if len(numbers) > len(order) or set(named) - {*order[len(numbers) :], *others}:
                self.fail(start, f"expected {word}{_arguments(order, others)}, in this order or by name")
            named = dict(zip(order, numbers, strict=False)) | named
            if word != "dense" and not {*order} <= {*named}:
                self.fail(start, f"expected {word}{_arguments(order, others)}: {order[0]} is missing")
        elif numbers:
            self.fail(start, f"the parameters of an activation have names, as in abrelu(A=0.3,B=1.1); got {numbers[0]}")
        return LayerText(name, named, formula=formula is not None)

    def number(self) -> float:
        column = self.tokens[self.at][2]
        number = float(self.need("number", "a number"))
        if not math.isfinite(number):
            self.fail(column, "expected a finite number")
        return number

    def value(self) -> Any:
        if not self.take("mark", "["):
            return self.number()
        numbers = [self.number()]
        while self.take("mark", ","):
            numbers.append(self.number())
        self.need("mark", ", or ]", "]")
        return numbers


def read_network(text: str) -> list[LayerText]:
    """The layers that a text such as `dense(1.5,0.1) gelu {t*Phi(t)} dense` names; ValueError with a caret."""
    return _Network(text).layers()


def _arguments(order: tuple[str, ...], others: tuple[str, ...]) -> str:
    return f"({', '.join([*order, *(f'{name}=' for name in others)])})"


def _network(layers: Iterable[LayerText], **approximation: Any) -> Any:
    from dualcalc import conv, networks
    from dualcalc import layers as vectors

    def built(layer: LayerText) -> Any:
        if layer.inner:
            return networks.Residual(*map(built, layer.inner))
        if layer.formula or layer.name not in LAYERS:
            return vectors.Activation(layer.name, **approximation, **layer.named)
        kind = LAYERS[layer.name][0]
        named = {
            key: (value, value) if key in SIZES and not isinstance(value, list) else value
            for key, value in layer.named.items()
        }
        return getattr(conv if hasattr(conv, kind) else vectors, kind)(**named)

    return networks.serial(*map(built, layers))


def _inputs(path: Path) -> Any:
    """The rows (n, d) or images (n, height, width, channels) in a .npy file: real; integers become float64."""
    import numpy as np

    try:
        data = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise Failure(f"{path}: no array that can be read safely ({error}); write it with numpy.save") from None
    if not isinstance(data, np.ndarray) or data.ndim not in (2, 4) or 0 in data.shape or data.dtype.kind not in "biuf":
        got = f"shape {data.shape}, type {data.dtype}" if isinstance(data, np.ndarray) else "an archive"
        raise Failure(
            f"{path}: got {got}; expected real numbers in a .npy file: one matrix (rows, features), or images "
            "(images, height, width, channels)"
        )
    wide = np.float32 if data.dtype in (np.float16, np.float32) else np.float64
    return data.astype(wide, copy=False)


@main.command()
@click.argument("network")
@click.option("--data", type=PATH, required=True, help="Rows (n, d) or images (n, height, width, channels), .npy.")
@click.option("--data2", type=PATH, help="Others like them; without it the kernel of --data with itself.")
@click.option("--get", type=click.Choice(["ntk", "nngp"]), default="ntk", show_default=True, help="Which kernel.")
@TOL
@NORMS
@click.option("-o", "--output", type=PATH, help="File for the kernel, as .npy.")
@click.option("--plan", is_flag=True, help="Only say what it would take: tiles, bytes, operations, measured seconds.")
@CATALOG
@FORCE
@JSON
@guarded
def kernel(
    network: str,
    data: Path,
    data2: Path | None,
    get: str,
    tol: float | None,
    norms: tuple[float, float] | None,
    output: Path | None,
    plan: bool,
    force: bool,
    as_json: bool,
) -> None:
    """The kernel matrix of NETWORK, such as "dense(1.5,0.1) gelu dense", on the rows of a matrix or on images.

    Layers are separated by blanks: dense, dense(W_std), dense(W_std,b_std), a catalog id, a catalog id with parameters
    as abrelu(A=0.3,B=1.1), a formula in braces as {t*Phi(t)}, layernorm, dropout(0.1), scale(2), residual(relu dense).
    For images: conv(3), conv(3,W_std=1.4,strides=2,padding=CIRCULAR), avgpool(2), globalavgpool, flatten.
    """
    layers = read_network(network)
    if output is None and not plan:
        raise click.UsageError("give -o FILE.npy for the kernel, or --plan")
    if output is not None:
        _writable(output, force)
        if output.exists() and any(path and path.exists() and path.samefile(output) for path in (data, data2)):
            raise Failure(f"{output}: the data is read from there; choose another name for the kernel")
    X = _inputs(data)
    Y = None if data2 is None else _inputs(data2)
    start = time.perf_counter()
    with _working("measuring" if plan else "computing the kernel"):
        import jax
        import numpy as np

        if any(z is not None and z.dtype == np.float64 for z in (X, Y)):
            jax.config.update("jax_enable_x64", True)
        net = _network(layers, **_given(tol=tol, norms=norms))
        if plan:
            planned = net.plan(X, Y, get=get, out=output, overwrite=force)
        else:
            values = net(X, Y, get=get, out=output, overwrite=force)
    seconds = time.perf_counter() - start
    if plan and as_json:
        names = ("n", "m", "tile", "tiles", "output_bytes", "working_bytes", "flops", "seconds", "refusal")
        _print_json({name: getattr(planned, name) for name in names})
    elif plan:
        click.echo(planned)
    elif as_json:
        shape, dtype = list(values.shape), str(values.dtype)
        _print_json({"file": str(output), "get": get, "shape": shape, "dtype": dtype, "seconds": round(seconds, 3)})
    else:
        rows, columns = values.shape
        click.echo(f"wrote {output}: {get} kernel, {rows} x {columns}, {values.dtype}, {seconds:.1f} s")


# features ---------------------------------------------------------------------------------------------------------

METHODS = ("sketch", "centred", "nystrom", "exact", "auto")  # features.METHODS for vectors; importing it imports JAX


@main.command()
@click.argument("network")
@click.option("--data", type=PATH, required=True, help="Rows (n, d) or images (n, height, width, channels), .npy.")
@click.option("--get", type=click.Choice(["ntk", "nngp"]), default="ntk", show_default=True, help="Of which kernel.")
@click.option("--components", type=click.IntRange(1), default=4096, show_default=True, help="Columns, at most.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="auto",
    show_default=True,
    help="auto measures the others on rows of the data, and says why it takes one.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed, the same features.")
@TOL
@NORMS
@click.option("-o", "--output", type=PATH, required=True, help="File for the features, as .npy.")
@CATALOG
@FORCE
@JSON
@guarded
def features(
    network: str,
    data: Path,
    get: str,
    components: int,
    method: str,
    seed: int,
    tol: float | None,
    norms: tuple[float, float] | None,
    output: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Features Z of the rows of a matrix, Z Z' ~ the kernel of NETWORK, such as "dense(1.5,0.1) gelu dense".

    NETWORK is written as for the command kernel. The error is measured against the exact kernel on some of the rows.
    """
    layers = read_network(network)
    _writable(output, force)
    if output.exists() and data.exists() and data.samefile(output):
        raise Failure(f"{output}: the data is read from there; choose another name for the features")
    X = _inputs(data)
    start = time.perf_counter()
    with _working("computing features"):
        import jax
        import numpy as np

        if X.dtype == np.float64:
            jax.config.update("jax_enable_x64", True)
        from dualcalc.features import Choice, choose, feature_error, feature_map

        net = _network(layers, **_given(tol=tol, norms=norms))
        auto = method == "auto"
        choice = choose(net, X, components, get=get, random_state=seed) if auto else Choice(method, "as asked")
        chosen = feature_map(net, X, components, choice.method, get=get, random_state=seed)
        shape = len(X), chosen.n_components
        error = feature_error(net, chosen, X, get=get, rows=256, random_state=seed).frobenius

        def write(file: Any) -> None:
            header = {"descr": np.lib.format.dtype_to_descr(X.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for first in range(0, len(X), 4096):
                file.write(np.asarray(chosen(X[first : first + 4096]), X.dtype).tobytes())

        write_file(output, write, force)
    seconds = time.perf_counter() - start
    if as_json:
        result: dict[str, Any] = {"file": str(output), "get": get, "method": choice.method, "reason": choice.reason}
        result |= {"shape": list(shape), "dtype": str(X.dtype), "error": error, "seconds": round(seconds, 3)}
        _print_json(result)
    else:
        click.echo(f"wrote {output}: {get} features, {shape[0]} x {shape[1]}, {X.dtype}, {seconds:.1f} s")
        click.echo(f"{choice.method}: {choice.reason}; relative error {error:.2g}")
