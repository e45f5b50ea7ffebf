"""What all commands share: errors and exit codes, output for terminals, pipes and programs, files, arguments."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
        click.echo(start + clean(self.message), file=file, err=True)


def clean(text: str) -> str:
    """Without the control characters that a formula or a file name may smuggle into a terminal."""
    return "".join(ch if ch.isprintable() or ch == "\n" else "?" for ch in text)


ADVICE = (
    (
        r"got the unknown name '(\w+)' (.*)declare it under `parameters`",
        r"got the unknown name '\1' \2give its default, as -p \1=1",
    ),
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


def in_terminal() -> bool:
    return sys.stdout.isatty()


def rich_console() -> Any:
    from rich.console import Console

    return Console(highlight=False, markup=False)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def finite(x: float) -> float | str:
    """JSON has no infinity."""
    return x if math.isfinite(x) else str(x)


def _rows(rows: Sequence[tuple[str, ...]], head: tuple[str, ...]) -> str:
    """A table as plain text, columns aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows))
    return "\n".join(lines)


def table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...], styles: Mapping[str, str] | None = None) -> None:
    """A table for whoever reads."""
    if not in_terminal():
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
    rich_console().print(table)


def panel(title: str, content: str) -> None:
    """A block of text that is not to be wrapped, with a title."""
    if not in_terminal():
        click.echo(f"{title}\n{content}")
        return
    from rich.panel import Panel
    from rich.text import Text

    rich_console().print(
        Panel(Text(content, no_wrap=False), title=Text(title), title_align="left", border_style="cyan")
    )


def say(text: str) -> None:
    """A remark, not a result."""
    click.echo(clean(text), err=True)


def show_page(address: str) -> None:
    """In the browser, where there is a screen for one."""
    if os.name == "nt" or sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        click.launch(address)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on stderr, in a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
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


def check_writable(path: Path, force: bool, *read: Path | None) -> None:
    """Refuse early what could not be written at the end, and what replaces a file that is `read`."""
    if path == Path():
        raise Failure("an empty name or '.' came for a file to write; give it a name")
    if path.exists() and not path.is_file():
        raise Failure(f"{path}: not a plain file; choose another name")
    if os.path.lexists(path) and not force:
        raise Failure(f"{path} exists already; --force replaces it")
    if not path.parent.is_dir():
        raise Failure(f"{path.parent}: no such folder; create it first")
    if path.exists() and any(other and other.exists() and other.samefile(path) for other in read):
        raise Failure(f"{path} is read here; choose another name for what is written")


def write_file(path: Path, write: Callable[[Any], None], force: bool = False) -> None:
    """The file appears under its name complete or not at all; without `force` it replaces nothing."""
    check_writable(path, force)
    temporary = path.parent / f".{path.name}.{os.urandom(6).hex()}.tmp"
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        check_writable(path, force)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# Arguments --------------------------------------------------------------------------------------------------------

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?"
EXACT = rf"(?:{NUMBER}|[-+]?\d+/\d+)"


def _parameters(context: Any, option: Any, values: tuple[str, ...]) -> dict[str, Any]:
    """`A=1.3`, `A=1/3` or, for a coefficient list, `a=1,-2,1/2`; exact texts, as the catalog reads them."""
    found: dict[str, Any] = {}
    for value in values:
        match = re.fullmatch(rf"\s*([A-Za-z]\w{{0,39}})\s*=\s*({EXACT}(?:\s*,\s*{EXACT})*)\s*", value, re.ASCII)
        if not match:
            raise click.BadParameter(f"got {clean(value)[:60]!r}; expected NAME=NUMBER such as A=1.3 or A=1/3")
        name, numbers = match[1], [x.strip() for x in match[2].split(",")]
        if name in found:
            raise click.BadParameter(f"got {name} twice; remove one")
        if name in reserved():
            raise click.BadParameter(f"no activation has a parameter {name}: it is a keyword of the library; rename it")
        found[name] = numbers if len(numbers) > 1 else numbers[0]
    return found


def reserved() -> frozenset[str]:
    from dualcalc.catalog import RESERVED

    return RESERVED


def add_folders(context: Any, option: Any, values: tuple[str, ...]) -> None:
    """Folders become part of the catalog of this process and of those that it starts."""
    for value in values:
        if not os.path.isdir(value):
            raise click.BadParameter(f"{clean(value)!r} is no folder; correct the path")
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
    "--catalog", "folders", multiple=True, metavar="DIR", callback=add_folders, expose_value=False,
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


def given(**options: Any) -> dict[str, Any]:
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
