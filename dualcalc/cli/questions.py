"""The commands that answer questions: phase, compare, nearest, doctor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from tokenize import TokenError
from typing import Any

import click

from .console import (
    CATALOG,
    EXPR,
    FAILED,
    FORCE,
    JSON,
    PARAMETERS,
    PATH,
    Command,
    Failure,
    check_writable,
    clean,
    finite,
    guarded,
    panel,
    print_json,
    say,
    table,
    working,
    write_file,
)
from .formulas import YES
from .network_text import build_network, read_network

# phase, compare, nearest and doctor -------------------------------------------------------------------------------

PICTURE = click.option("-o", "--output", type=PATH, help="Draw it: a file that ends in .png, .svg or .pdf.")


def _draw(panels: Callable[[], list[Any]], output: Path | None, title: str, force: bool) -> None:
    """The picture, where one is asked for."""
    if output is None:
        return
    try:
        from dualcalc import plots
    except ModuleNotFoundError as error:
        raise Failure(f"{error.name} is missing: pip install 'dualcalc[plots]'") from None
    with working("drawing"):
        drawn = panels()
        picture = plots.rendered(plots.draw(drawn, columns=len(drawn), title=title), output.name)
    write_file(output, lambda file: file.write(picture), force)
    say(f"wrote {output}")


def _drawable(output: Path | None, force: bool) -> None:
    if output is not None:
        check_writable(output, force)
        if output.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise Failure(f"{output.name} came; expected a file name that ends in .png, .svg or .pdf")


@click.command(cls=Command)
@EXPR
@click.option(
    "--W-std",
    "W_std",
    type=click.FloatRange(0),
    default=1.5,
    show_default=True,
    help="Of the weights, a deviation.",
)
@click.option("--b-std", type=click.FloatRange(0), default=0.1, show_default=True, help="Of the biases, a deviation.")
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
    with working("computing"):
        from dualcalc import phases

        found = phases.phase(expr, W_std, b_std, **parameters)
    _draw(lambda: phases.phase_panels(found), output, f"s(t) = {found.activation}", force)
    if as_json:
        names = ("activation", "W_std", "b_std", "name", "q", "chi_1", "c", "depth_scale")
        plain = {name: finite(v) if isinstance(v := getattr(found, name), float) else v for name in names}
        lists: dict[str, tuple[Any, ...]] = {"fixed": found.fixed, "line": found.line}
        print_json(plain | {name: [point._asdict() for point in points] for name, points in lists.items()})
        return
    facts = (
        ("phase", f"{found.name}, at W_std = {found.W_std:g}, b_std = {found.b_std:g}"),
        ("q*", f"{found.q:.6g}" if math.isfinite(found.q) else "none: the variance grows without end"),
        ("chi_1", f"{found.chi_1:.6g}" + ("" if math.isfinite(found.q) else " at the greatest q that was looked at")),
        ("c*", f"{found.c:.6g}" if math.isfinite(found.c) else "-"),
        ("depth scale", "-" if math.isnan(found.depth_scale) else f"{found.depth_scale:.4g} layers"),
        *(("unstable", f"q = {f.q:.6g}, V'(q) = {f.slope:.4g}") for f in found.fixed if f.slope > 1 + 1e-9),
    )
    panel("Phase", "\n".join(f"{name:<12s} {value}" for name, value in facts))
    if not found.line:
        say("no critical line: chi_1 is not 1 at any fixed point")
        return
    middle = [p for p in found.line if 1e-3 < p.q < 1e2] or found.line
    some = middle[:: max(len(middle) // 8, 1)]
    rows = [(f"{p.q:.4g}", f"{p.W_std:.6g}", f"{p.b_std:.6g}", YES[p.stable]) for p in some]
    rows = list({row[1:]: row for row in reversed(rows)}.values())[::-1]  # of homogeneous activations one point
    table(rows, ("critical: q", "W_std", "b_std", "stable"))


@click.command(cls=Command)
@click.argument("exprs", nargs=-1, required=True, metavar="EXPR EXPR...")
@click.option("--degrees", type=click.IntRange(0, 100), default=8, show_default=True, help="Of the spectra.")
@click.option("--dimension", type=click.IntRange(3), default=10, show_default=True, help="Of the space of the sphere.")
@PICTURE
@PARAMETERS
@CATALOG
@FORCE
@JSON
@guarded
def compare(
    exprs: tuple[str, ...],
    degrees: int,
    dimension: int,
    output: Path | None,
    parameters: dict[str, Any],
    force: bool,
    as_json: bool,
) -> None:
    """Two or more activations side by side at unit norm: duals, Hermite spectra, eigenvalues on the sphere."""
    _drawable(output, force)
    with working("computing"):
        from dualcalc import tools

        found = tools.compare(exprs, degrees=degrees, dimension=dimension, **parameters)
    _draw(lambda: tools.compare_panels(found, exprs, **parameters), output, "", force)
    if as_json:
        keys = ("name", "top", "cosines", "values", "spectrum", "eigenvalues")
        rows = [{k: v.tolist() if hasattr(v := getattr(f, k), "tolist") else v for k in keys} for f in found]
        print_json([{**row, "dimension": dimension} for row in rows])
        return
    names = tuple(clean(f.name) for f in found)

    def block(head: str, labels: Iterable[str], columns: Iterable[Any]) -> None:
        cells = zip(
            labels, *([""] * (degrees + 1) if c is None else [f"{x:.4g}" for x in c] for c in columns), strict=True
        )
        table(list(cells), (head, *names))

    block("k(c)/k(1), c =", [f"{c:g}" for c in found[0].cosines], [f.values for f in found])
    block("mass of degree", map(str, range(degrees + 1)), [f.spectrum for f in found])
    block(f"eigenvalue, d = {dimension}, degree", map(str, range(degrees + 1)), [f.eigenvalues for f in found])


@click.command(cls=Command)
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
    with working("comparing with the catalog"):
        from dualcalc import tools

        found = tools.nearest(expr, by, **parameters)
    if as_json:
        print_json({"entries": [near._asdict() for near in found.entries[:count]], "skipped": found.skipped})
        return
    rows = [(near.id, f"{near.distance:.3g}", f"{near.scale:.4g}") for near in found.entries[:count]]
    table(rows, ("id", "distance", "scale"), {"id": "bold cyan"})
    for id, reason in found.skipped.items():
        say(f"skipped {id}: {reason}")


@click.command()
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
    with working("looking"):
        from dualcalc import tools

        if is_kernel:
            found = tools.examine_kernel(values)
        else:
            found = tools.examine_data(values, None if layers is None else build_network(layers), get)
    if as_json:
        print_json([finding._asdict() for finding in found])
    else:
        for finding in found:
            click.echo(f"{finding.name}: {finding.found}.\n  Remedy: {finding.remedy}.")
        rows, columns = values.shape
        said = "1 warning" if len(found) == 1 else f"{len(found)} warnings"
        click.echo(f"{'kernel' if is_kernel else 'data'} {rows} x {columns}, {values.dtype}: {said}")
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
    except (ValueError, EOFError, TokenError) as error:
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
