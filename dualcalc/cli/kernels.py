"""The commands that compute with data: kernel, solve, features."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from .console import (
    CATALOG,
    FAILED,
    FORCE,
    JSON,
    NORMS,
    PATH,
    TOL,
    Failure,
    check_writable,
    clean,
    given,
    guarded,
    print_json,
    working,
    write_file,
)
from .network_text import build_network, read_array, read_inputs, read_network


def _part(context: Any, option: Any, text: str | None) -> tuple[int, int] | None:
    """`2/8`: the second of eight."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise click.BadParameter(f"got {clean(text)[:40]!r}; expected I/N with 1 <= I <= N, such as 2/8")
    return int(match[1]) - 1, int(match[2])


def _store(
    net: Any,
    X: Any,
    Y: Any,
    output: Path,
    get: str,
    workers: int | None,
    scheduler: str | None,
    part: tuple[int, int] | None,
) -> Any:
    """Write the kernel as tiles, by whoever was named."""
    try:
        from distributed import Client

        from dualcalc import cluster
    except ModuleNotFoundError as error:
        raise Failure(f"{error.name} is missing: pip install 'dualcalc[cluster]'") from None
    with ExitStack() as stack:
        client = None
        if workers is not None:
            client = stack.enter_context(cluster.local(workers))
        elif scheduler is not None:
            try:
                client = stack.enter_context(Client(scheduler, timeout="10s"))
            except (OSError, ValueError) as error:
                raise Failure(f"no scheduler answers at {clean(scheduler)} ({error}); correct the address") from None
        return cluster.write(net, X, output, Y, get, client=client, part=part)


ROWS = click.option("--rows", type=click.IntRange(1), help="With --plan: estimate for so many rows, on --workers.")


def _check_rows(plan: bool, rows: int | None) -> None:
    if rows is not None and not plan:
        raise click.UsageError("--rows is for --plan; without it the rows are those of --data")


def _say(estimate: Any, as_json: bool) -> None:
    """An estimate for a cluster."""
    if as_json:
        print_json(estimate.figures())
    else:
        click.echo(estimate)


@click.command()
@click.argument("network")
@click.option("--data", type=PATH, required=True, help="Rows (n, d) or images (n, height, width, channels), .npy.")
@click.option("--data2", type=PATH, help="Others like them; without it the kernel of --data with itself.")
@click.option("--get", type=click.Choice(["ntk", "nngp"]), default="ntk", show_default=True, help="Which kernel.")
@TOL
@NORMS
@click.option("-o", "--output", type=PATH, help="File for the kernel, .npy, or a store of tiles, .zarr.")
@click.option("--workers", type=click.IntRange(1), help="Worker processes for a .zarr.")
@click.option("--scheduler", help="Address of a Dask scheduler, whose workers see the same folder, for a .zarr.")
@click.option("--tiles", "part", metavar="I/N", callback=_part, help="Only the I-th of N parts of a .zarr, I from 1.")
@click.option("--plan", is_flag=True, help="Only say what it would take: tiles, bytes, operations, measured seconds.")
@ROWS
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
    workers: int | None,
    scheduler: str | None,
    part: tuple[int, int] | None,
    plan: bool,
    rows: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """The kernel matrix of NETWORK, such as "dense(1.5,0.1) gelu dense", on the rows of a matrix or on images.

    Layers are separated by blanks: dense, dense(W_std), dense(W_std,b_std), a catalog id, a catalog id with parameters
    as abrelu(A=0.3,B=1.1), a formula in braces as {t*Phi(t)}, layernorm, dropout(0.1), scale(2), residual(relu dense).
    For images: conv(3), conv(3,W_std=1.4,strides=2,padding=CIRCULAR), avgpool(2), globalavgpool, flatten.

    A .zarr is written tile by tile, with a checksum of each; a second call on it finds damaged tiles, and computes what
    is missing. --tiles makes it from jobs that know nothing of each other, in any order.

    --plan --rows 1000000 --workers 64 estimates what a store of so many rows takes, and a ridge regression from it,
    from rates that are measured on those of --data.
    """
    layers = read_network(network)
    if output is None and not plan:
        raise click.UsageError("give -o FILE.npy or FILE.zarr for the kernel, or --plan")
    tiled = output is not None and output.suffix == ".zarr"
    _check_rows(plan, rows)
    if rows is not None and (data2 or scheduler or part):
        raise click.UsageError("--rows estimates the kernel of rows with themselves, on --workers; leave out the rest")
    if rows is None and not tiled and (workers or scheduler or part):
        raise click.UsageError(
            "--workers, --scheduler and --tiles need a store of tiles: -o FILE.zarr; --plan --workers needs --rows"
        )
    if tiled and force:
        raise click.UsageError("--force replaces no store of tiles: a second call goes on with it; or remove it")
    if sum(given is not None for given in (workers, scheduler, part)) > 1:
        raise click.UsageError("give one of --workers, --scheduler and --tiles")
    if output is not None and not tiled:
        check_writable(output, force, data, data2)
    X = read_inputs(data)
    Y = None if data2 is None else read_inputs(data2)
    start = time.perf_counter()
    with working("measuring" if plan else "computing the kernel"):
        import jax
        import numpy as np

        if any(z is not None and z.dtype == np.float64 for z in (X, Y)):
            jax.config.update("jax_enable_x64", True)
        net = build_network(layers, **given(tol=tol, norms=norms))
        if rows is not None:
            from dualcalc import sizing

            estimate = sizing.kernel(net, X, rows, workers=workers or 1, get=get)
        elif plan:
            planned = net.plan(X, Y, get=get, out=None if tiled else output, overwrite=force)
        elif tiled and output is not None:
            run = _store(net, X, Y, output, get, workers, scheduler, part)
        else:
            values = net(X, Y, get=get, out=output, overwrite=force)
    seconds = time.perf_counter() - start
    if rows is not None:
        _say(estimate, as_json)
    elif plan and as_json:
        names = ("n", "m", "tile", "tiles", "output_bytes", "working_bytes", "flops", "seconds", "refusal")
        print_json({name: getattr(planned, name) for name in names})
    elif plan:
        click.echo(str(planned).replace(" in memory", f" in {output}") if tiled else planned)
    elif tiled and as_json:
        counts = {name: getattr(run, name) for name in ("tiles", "computed", "damaged", "kept", "missing")}
        print_json({"file": str(output), "get": get, **counts, "seconds": round(seconds, 3)})
    elif tiled:
        done = f"{run.computed} of {run.tiles} tiles computed ({run.damaged} were damaged), {run.kept} kept"
        left = f", {run.missing} missing" if run.missing else ""
        if not run.computed and not run.missing:
            click.echo(f"{output} is complete: {run.kept} tiles checked, {seconds:.1f} s")
        else:
            click.echo(f"{'wrote part of' if run.missing else 'wrote'} {output}: {done}{left}, {seconds:.1f} s")
    elif as_json:
        found = {"shape": list(values.shape), "dtype": str(values.dtype)}
        print_json({"file": str(output), "get": get, **found, "seconds": round(seconds, 3)})
    else:
        shape = " x ".join(map(str, values.shape))
        click.echo(f"wrote {output}: {get} kernel, {shape}, {values.dtype}, {seconds:.1f} s")


# solve ------------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("kernel", type=PATH)
@click.option("--targets", type=PATH, required=True, help="Targets (n,) or (n, targets), .npy.")
@click.option("--ridge", type=click.FloatRange(0), required=True, help="Added to the diagonal, in units of the kernel.")
@click.option("--get", type=click.Choice(["ntk", "nngp"]), help="Which kernel of a store that has both.")
@click.option("--method", type=click.Choice(["auto", "cholesky", "cg"]), default="auto", show_default=True)
@click.option("--memory", type=click.FloatRange(0, min_open=True), default=4.0, show_default=True, help="In GB.")
@click.option("--scratch", type=PATH, help="Folder for the factor of cholesky where it does not fit into memory.")
@click.option("--tol", type=click.FloatRange(0), default=1e-8, show_default=True, help="Relative residual to reach.")
@click.option("--guess", type=PATH, help="Coefficients from which cg starts, .npy: those of a run that ended early.")
@click.option("-o", "--output", type=PATH, required=True, help="File for the coefficients, .npy.")
@FORCE
@JSON
@guarded
def solve(
    kernel: Path,
    targets: Path,
    ridge: float,
    get: str | None,
    method: str,
    memory: float,
    scratch: Path | None,
    tol: float,
    guess: Path | None,
    output: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Kernel ridge regression from the matrix in KERNEL, a .zarr of tiles or a .npy, that need not fit into memory.

    The coefficients a solve (K + ridge I) a = y; predictions are K(X_test, X) a. By a blocked Cholesky factorization
    where its factor, 8 n^2 bytes, fits into --memory, or into a --scratch folder; by preconditioned conjugate gradients
    beyond. Exit code 1 where the residual stays above --tol: the coefficients are written all the same.
    """
    check_writable(output, force, kernel, targets)
    with working("solving"):
        import numpy as np

        from dualcalc import solvers

        if kernel.suffix == ".zarr":
            try:
                from dualcalc import cluster
            except ModuleNotFoundError as error:
                raise Failure(f"{error.name} is missing: pip install 'dualcalc[cluster]'") from None
            matrix: Any = cluster.Store.open(kernel).kernel(get)
        else:
            matrix = read_array(kernel, mapped=True)
        y, start = read_array(targets), None if guess is None else read_array(guess)
        options: dict[str, Any] = {"method": method, "tol": tol, "memory": int(memory * 1e9)}
        found = solvers.solve(matrix, y, ridge, scratch=scratch, guess=start, **options)
        write_file(output, lambda file: np.save(file, found.coefficients), force)
    if as_json:
        names = ("method", "residual", "converged", "rank", "seconds", "steps")
        print_json({"file": str(output), **{name: getattr(found, name) for name in names}})
    else:
        click.echo(f"wrote {output}: {' x '.join(map(str, found.coefficients.shape))} coefficients")
        click.echo(found)
    if not found.converged:
        raise Failure(f"not converged; go on with --guess {output}, a larger --ridge or a larger --tol", FAILED)


# features ---------------------------------------------------------------------------------------------------------

METHODS = ("sketch", "centred", "nystrom", "exact", "auto")  # features.METHODS for vectors; importing it imports JAX


@click.command()
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
@click.option("-o", "--output", type=PATH, help="File for the features, as .npy.")
@click.option("--plan", is_flag=True, help="Only say what Z'Z of --rows takes on --workers, from measured rates.")
@ROWS
@click.option("--workers", type=click.IntRange(1), help="Worker processes for --plan.")
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
    output: Path | None,
    plan: bool,
    rows: int | None,
    workers: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Features Z of the rows of a matrix, Z Z' ~ the kernel of NETWORK, such as "dense(1.5,0.1) gelu dense".

    NETWORK is written as for the command kernel. The error is measured against the exact kernel on some of the rows.
    """
    layers = read_network(network)
    _check_rows(plan, rows)
    if output is None:
        if not plan:
            raise click.UsageError("give -o FILE.npy for the features, or --plan")
    else:
        check_writable(output, force, data)
    X = read_inputs(data)
    start = time.perf_counter()
    with working("computing features"):
        import jax
        import numpy as np

        if X.dtype == np.float64:
            jax.config.update("jax_enable_x64", True)
        from dualcalc.features import Choice, choose, feature_error, feature_map

        net = build_network(layers, **given(tol=tol, norms=norms))
        auto = method == "auto"
        choice = choose(net, X, components, get=get, random_state=seed) if auto else Choice(method, "as asked")
        chosen = feature_map(net, X, components, choice.method, get=get, random_state=seed)
        if plan:
            from dualcalc import sizing

            _say(sizing.moments(chosen, X, rows or len(X), workers=workers or 1), as_json)
            if not as_json:
                size = f"{chosen.n_components} columns of {components} at most, fitted on {len(X)} rows"
                click.echo(f"method    {choice.method}: {size}")
            return
        assert output is not None
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
        print_json(result)
    else:
        click.echo(f"wrote {output}: {get} features, {shape[0]} x {shape[1]}, {X.dtype}, {seconds:.1f} s")
        click.echo(f"{choice.method}: {choice.reason}; relative error {error:.2g}")
