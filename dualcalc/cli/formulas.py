"""The commands about one activation's formulas: derive, compile, hermite, bound, plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from .console import (
    CATALOG,
    EXPR,
    FORCE,
    JSON,
    LIBRARIES,
    NORMS,
    PARAMETERS,
    PATH,
    TARGETS,
    TOL,
    Command,
    Failure,
    check_writable,
    finite,
    given,
    guarded,
    in_terminal,
    panel,
    print_json,
    rich_console,
    say,
    table,
    working,
    write_file,
)


def dual_of(expr: str, parameters: Mapping[str, Any]) -> Any:
    from dualcalc.dual import derive

    return derive(expr, **parameters)


class Formulas(NamedTuple):
    """k and kdot as SymPy expressions; kdot is None where it is refused, and then there is the reason."""

    k: Any
    kdot: Any
    reason: str


def formulas_of(dual: Any) -> Formulas:
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


def formula_json(formulas: Formulas) -> dict[str, Any]:
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


def show_formulas(formulas: Formulas) -> None:
    if not in_terminal():
        click.echo(f"k = {formulas.k}")
        click.echo(f"kdot: {formulas.reason}" if formulas.kdot is None else f"kdot = {formulas.kdot}")
        return
    width = rich_console().width - 4
    for name, expr in (("k = E[s(u) s(v)]", formulas.k), ("kdot = E[s'(u) s'(v)]", formulas.kdot)):
        if expr is None:
            panel(name, formulas.reason)
            continue
        panel(name, drawing(expr, width))


def _show_derivation(derivation: Any) -> None:
    if not in_terminal():
        click.echo(str(derivation))
        return
    rich_console().print(derivation_tree(derivation.root))


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


@click.command(cls=Command)
@EXPR
@PARAMETERS
@CATALOG
@JSON
@guarded
def derive(expr: str, parameters: dict[str, Any], as_json: bool) -> None:
    """Print the closed forms k and kdot of EXPR, and how they come about."""
    with working("deriving"):
        dual = dual_of(expr, parameters)
        formulas, derivation = formulas_of(dual), dual.derivation
    if as_json:
        defaults = {s.name: str(dual.defaults[s.name]) if s.name in dual.defaults else None for s in dual.parameters}
        print_json(
            {
                "activation": None if dual.activation is None else str(dual.activation),
                "source": dual.source,
                **formula_json(formulas),
                "domain": dual.domain,
                "parity": dual.parity,
                "homogeneity": dual.homogeneity,
                "jumps": [str(at) for at in dual.jumps],
                "parameters": defaults,
                "derivation": _tree(derivation.root),
            }
        )
        return
    panel("Dual", "\n".join(f"{name:<12s} {value}" for name, value in _facts(dual).items()))
    show_formulas(formulas)
    _show_derivation(derivation)


# compile ----------------------------------------------------------------------------------------------------------


@click.command("compile", cls=Command)
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
        check_writable(output, force)
    with working(f"compiling for {library or target}"):
        approximation = given(tol=tol, norms=norms)
        if library is not None:
            from dualcalc.adapters import starting_source

            source, target = starting_source(expr, library, **approximation, **parameters), library
        else:
            from dualcalc.codegen import emit

            source = emit(expr, target, **approximation, **parameters)
    if output is not None:
        write_file(output, lambda file: file.write(source.encode()), force)
    if as_json:
        print_json({"target": target, "file": str(output) if output else None, "source": source})
    elif output is not None:
        click.echo(f"wrote {output}: {len(source.splitlines())} lines for {target}")
    elif in_terminal():
        from rich.syntax import Syntax

        lexer = "latex" if target == "latex" else "python"
        rich_console().print(Syntax(source.rstrip(), lexer, background_color="default", word_wrap=True))
    else:
        click.echo(source, nl=False)


# hermite, bound and plot ------------------------------------------------------------------------------------------

YES = {True: "yes", False: "no"}
DEGREE = click.option("--degree", type=int, default=20, show_default=True, help="Of the truncation.")
NORM = click.option("--norm", type=float, default=1.0, show_default=True, help="The norm sqrt(q11).")
CERTIFIED = click.option("--certified", is_flag=True, help="Proved enclosures, from ball arithmetic.")


@click.command(cls=Command)
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
        print_json({"norm": norm, "degree": degree, "coefficients": values, "tail": tail, "certified": certified})
        return
    rows = [(str(j), x if certified else f"{x: .17g}") for j, x in enumerate(values)]
    table(rows, ("j", "coefficient"))
    say(f"sum of the squares beyond degree {degree}: {tail if certified else f'{tail:.3g}'}")


@click.command(cls=Command)
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
        print_json([{k: finite(v) if isinstance(v, float) else v for k, v in row.items()} for row in values])
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
    table(rows, ("of", "approximant", "bound", "absolute", "relative", "theorem", "certified"))
    say("theorem: the formula is proved at this degree; certified: its number is rounded up from balls, not float64")


@click.command(cls=Command)
@EXPR
@click.option("-o", "--output", type=PATH, required=True, help="File to write: .png, .svg or .pdf.")
@PARAMETERS
@CATALOG
@FORCE
@guarded
def plot(expr: str, output: Path, parameters: dict[str, Any], force: bool) -> None:
    """Draw EXPR: the activation, its dual, its Hermite spectrum, and the error against the degree."""
    check_writable(output, force)
    try:
        from dualcalc import plots
    except ModuleNotFoundError as error:
        raise Failure(f"{error.name} is missing: pip install 'dualcalc[plots]'") from None
    with working("drawing"):
        picture = plots.rendered(plots.overview(expr, **parameters), output.name)
    write_file(output, lambda file: file.write(picture), force)
    click.echo(f"wrote {output}")
