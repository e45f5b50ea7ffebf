"""The commands of the catalog: list, show, verify, new, site, browse."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from .console import (
    BAD_INPUT,
    CATALOG,
    FAILED,
    FORCE,
    JSON,
    PARAMETERS,
    PATH,
    Failure,
    add_folders,
    clean,
    finite,
    guarded,
    in_terminal,
    panel,
    print_json,
    progress,
    rich_console,
    show_page,
    table,
    working,
)
from .formulas import dual_of, formula_json, formulas_of, show_formulas


@click.group("catalog")
@CATALOG
def group() -> None:
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


@group.command("list")
@CATALOG
@JSON
@guarded
def list_(as_json: bool) -> None:
    """All entries, those of the paper's Table 1 first."""
    from dualcalc import catalog

    entries = list(catalog.load().values())
    if as_json:
        print_json([_record(entry) for entry in entries])
        return
    rows = [
        (e.id, e.title, e.formula, "" if e.table1 is None else str(e.table1), _closed(e.closed_form, e.jumps))
        for e in entries
    ]
    table(rows, ("id", "title", "formula", "table 1", "closed form"), {"id": "bold cyan", "title": "bold"})


@group.command()
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
    with working("deriving"):
        from dualcalc.atoms import NoClosedForm

        try:
            dual = dual_of(id, {})
            formulas = formulas_of(dual)
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
        print_json(_record(entry) | more | ({} if refused else {"domain": dual.domain} | formula_json(formulas)))
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
    panel(entry.id, "\n".join(f"{name:<12s} {value}" for name, value in rows))
    if not refused:
        show_formulas(formulas)


def _describe(name: str, parameter: Any) -> str:
    default = parameter.default
    value = ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    signs = [word for word in ("positive", "nonnegative", "integer") if getattr(parameter, word)]
    details = "; ".join(part for part in (" ".join(signs), parameter.description) if part)
    return f"{name} = {value}" + (f" ({details})" if details else "")


def _cite(reference: Any) -> str:
    where = reference.doi or (f"arXiv:{reference.arxiv}" if reference.arxiv else "")
    return f"{reference.author} ({reference.year}), {reference.title}, {reference.venue}{', ' + where if where else ''}"


@group.command("verify")
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
        add_folders(None, None, (str(folder),))
    known = catalog.load()
    chosen = {id: known.entry(id) for id in ids} if ids else dict(known)
    if folder is not None:
        chosen = {id: entry for id, entry in chosen.items() if entry.path.parent == folder.resolve()}
    if not chosen:
        raise Failure(f"{folder}: no entries there to verify")
    start = time.perf_counter()
    with working("loading"):
        from dualcalc import verify
    if workers is None:
        workers = 1 if len(chosen) < 6 else _cores()  # a process needs seconds to import SymPy
    with progress("verifying", len(chosen)) as step:
        reports = verify.verify_all(chosen, lambda report: step(report.id), workers=workers, seed=seed)
    failed = [report for report in reports if not report.passed]
    if as_json:
        print_json([_report_json(report) for report in reports])
    else:
        _show_reports(reports, verify.LAWS)
        passed = f"{len(reports) - len(failed)} of {len(reports)} entries pass"
        click.echo(f"{passed}, {time.perf_counter() - start:.0f} s")
    if failed:
        raise click.exceptions.Exit(FAILED)


def _report_json(report: Any) -> dict[str, Any]:
    laws = {
        r.law: {"error": finite(r.error), "tolerance": r.tolerance, "passed": r.passed, "note": r.note or None}
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
    if measured and (not in_terminal() or rich_console().width >= 8 * len(laws) + 30):
        table([row for _, row in measured], head, {"entry": "bold cyan"})
    elif measured:
        worst = [(report.id, max(report.results, key=lambda r: r.severity)) for report, _ in measured]
        cells = [(id, r.law, f"{r.error:.0e}{'' if r.passed else '!'}", f"{r.tolerance:.0e}") for id, r in worst]
        table(cells, ("entry", "worst law", "error", "tolerance"), {"entry": "bold cyan"})
    for report in reports:
        if report.passed and report.reason:
            click.echo(f"{report.id}: no closed form: {report.reason}")
        for r in report.failures:
            click.echo(
                f"{report.id}: FAILED {r.law}: error {r.error:.2g}, tolerance {r.tolerance:.0e}. {r.note}".rstrip()
            )


@group.command()
@click.option("--id", "id_", help="Permanent name: lower-case letters, digits, underscores.")
@click.option("--expression", help="The activation, a formula in t.")
@click.option("--kernel", help="Or a bare kernel, a formula in q11, q12, q22.")
@click.option("--name", help="Display name.")
@click.option("--notes", help="What it is used for and where it comes from.")
@click.option("--folder", type=PATH, default=Path("catalog"), show_default=True, help="Where the file goes.")
@click.option(
    "--page", type=PATH, help="Folder for its page  [default: none; in a terminal a new one, and it is opened]"
)
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
    page: Path | None,
    parameters: dict[str, Any],
    as_json: bool,
) -> None:
    """Derive and verify an activation, write it as a catalog file, show its page. -p gives parameters their defaults.

    In a terminal, what is not given is asked for. What has no closed form, or jumps, is declared so in the file.
    """
    if expression is not None and kernel is not None:
        raise click.UsageError("give either --expression or --kernel, not both")
    if not folder.is_dir():
        raise Failure(f"{folder}: no such folder; create it first")
    if page is not None and page.exists() and (not page.is_dir() or any(page.iterdir())):
        raise Failure(f"{page}: not an empty folder; name a new one for the page")
    if page is not None or _asks():
        _pages()
    from dualcalc import catalog

    if kernel is None:
        expression = _ask(expression, "--expression", "activation, a formula in t", _formula)
        parameters = _ask_values(expression, parameters)
    if name is None and _asks():
        name = click.prompt("display name", default=id_)
    id_ = _ask(id_, "--id", "id, its permanent name (lower-case letters, digits, underscores)", _id, _slug(name))
    fields: dict[str, Any] = {"expression": expression, "kernel": kernel, "parameters": parameters, "name": name or id_}
    catalog.draft(id_, **fields)
    if _asks() and notes is None:
        notes = click.prompt("notes: what it is used for, where it comes from", default="", show_default=False) or None
    fields |= {"notes": notes}
    if os.path.lexists(folder / f"{id_}.yaml"):
        raise Failure(f"{folder / id_}.yaml exists already; choose another --id, or remove the file")
    with working("deriving and verifying"):
        from dualcalc import verify
        from dualcalc.dual import drafted

        entry = drafted(id_, **fields).entry
        fields |= {"closed_form": entry.closed_form, "jumps": entry.jumps}
        report = verify.verify(entry)
    if not report.passed:
        first = report.failures[0]
        unread = first.law == verify.DERIVED
        raise Failure(f"{first.note if unread else report}\nnothing was written", BAD_INPUT if unread else FAILED)
    path = catalog.new_entry(folder, id_, **fields)
    shown = _page_of(id_, path, page)
    if as_json:
        print_json({"file": str(path), "page": shown and str(shown), **_report_json(report)})
        return
    click.echo(f"wrote {path}; add its references there. Use it with --catalog {folder}")
    if report.reason:
        click.echo(f"no closed form, it is approximated: {report.reason}")
    if entry.jumps:
        click.echo("it jumps: k has a closed form, kdot and with it the NTK have no value; take the NNGP")
    if shown is not None:
        click.echo(f"its page: {shown}")
        if _asks():
            show_page(shown.as_uri())


def _ask_values(expression: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """With answers for the names in a formula that have no value yet."""
    if not _asks():
        return parameters
    from dualcalc.parsing import ParseError, parse_activation

    try:
        symbols = parse_activation(expression).free_symbols
    except ParseError:  # its degrees or lists are among the parameters, or the draft says what is wrong
        return parameters
    names = sorted({symbol.name for symbol in symbols} - {"t", *parameters})
    asked = {name: click.prompt(f"default of the parameter {name}", "1", value_proc=_value) for name in names}
    return parameters | asked


def _page_of(id: str, path: Path, folder: Path | None) -> Path | None:
    """Write the entry's page, where one is asked for and can be made."""
    if folder is None and not _asks():
        return None
    from dualcalc import catalog

    pages = _pages()
    known = catalog.load(path.parent)
    folder = folder or Path(tempfile.mkdtemp(prefix="dualcalc-"))
    with working("drawing its page"):
        pages.build({id: known.entry(id)}, known.references, folder, node=shutil.which("node"))
    return (folder / f"{id}.html").resolve()


def _pages() -> Any:
    try:
        from dualcalc import site as pages
    except ModuleNotFoundError as error:
        raise Failure(f"{error.name} is missing: pip install 'dualcalc[site]'") from None
    return pages


@group.command()
@click.option("--out", type=PATH, default=Path("site"), show_default=True, help="Folder for the pages; made if needed.")
@click.option("--id", "ids", multiple=True, help="Only this entry; repeat it for more.")
@click.option("--workers", type=click.IntRange(1, 64), help="Processes  [default: one per core, at most 4]")
@click.option("--katex/--no-katex", default=None, help="Formulas by KaTeX, not MathML  [default: where node is found]")
@CATALOG
@FORCE
@JSON
@guarded
def site(out: Path, ids: tuple[str, ...], workers: int | None, katex: bool | None, force: bool, as_json: bool) -> None:
    """Write the catalog as static pages that open in a browser, without a server or a network."""
    from dualcalc import catalog

    with working("loading"):
        pages = _pages()
    if out.exists() and not out.is_dir():
        raise Failure(f"{out}: not a folder; choose another name")
    if out.is_dir() and any(out.iterdir()) and not force and not pages.is_site(out):
        raise Failure(f"{out} holds other files; choose an empty folder, or --force to write among them")
    node = shutil.which("node") if katex is not False else None
    if katex and node is None:
        raise Failure("node, which runs KaTeX, is not on the PATH; install it, or take --no-katex")
    known = catalog.load()
    chosen = {id: known.entry(id) for id in ids} if ids else dict(known)
    workers = workers or (1 if len(chosen) < 6 else _cores())
    with progress("pages", len(chosen)) as step:
        made = pages.build(chosen, known.references, out, workers=workers, node=node, progress=step)
    if as_json:
        print_json(made._asdict() | {"home": str(made.home)})
    else:
        size = f"{made.size / 2**20:.1f} MiB"
        click.echo(f"wrote {made.home} and {made.pages - 1} entries: {size}, {made.seconds:.0f} s")


@group.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8017, show_default=True, help="0 takes a free one.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Where to listen; any other lets others in.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.1, 3600), default=20.0, show_default=True, help="To derive what is typed."
)
@click.option("--memory", type=click.IntRange(64), default=1024, show_default=True, help="MiB to derive it.")
@click.option("--open/--no-open", "opened", default=None, help="Open a browser  [default: in a terminal]")
@CATALOG
@guarded
def browse(port: int, host: str, seconds: float, memory: int, opened: bool | None) -> None:
    """Serve the catalog to a browser on this machine, with a page for any activation that is typed; Ctrl-C ends it."""
    from dualcalc import catalog

    known = catalog.load()
    with working("loading"):
        _pages()
        from dualcalc import serve

        try:
            server = serve.Server(known, host, port, serve.Limits(seconds, memory * 2**20))
        except (OSError, OverflowError) as error:
            raise Failure(f"cannot listen on {clean(host)}:{port} ({error}); --port 0 takes a free port") from None
    with server:
        click.echo(f"the catalog is at {server.url} and {server.url}live; Ctrl-C ends it")
        if in_terminal() if opened is None else opened:
            show_page(server.url)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def _cores() -> int:
    """Processes to use where none are asked for."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 4)


def _asks() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _ask(value: str | None, option: str, question: str, check: Callable[[str], str], default: str | None = None) -> str:
    """The value, or the answer of whoever sits at the terminal, who is asked again where `check` refuses it."""
    if value is not None:
        return value
    if not _asks():
        raise click.UsageError(f"{option} is missing; outside a terminal nothing is asked")
    return click.prompt(question, default, value_proc=check)


def _again(check: Callable[[], Any]) -> None:
    """What is wrong with an answer as what makes click ask again."""
    try:
        check()
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _formula(text: str) -> str:
    from dualcalc.parsing import parse_activation

    if not re.search(r"hermite|polynomial|\*\*\s*[A-Za-z]", text):  # a degree is read once it has its value
        _again(lambda: parse_activation(text))
    return text


def _value(text: str) -> str | list[str]:
    from dualcalc.catalog import exact

    parts = [part.strip() for part in text.split(",")]
    _again(lambda: [exact(part) for part in parts])
    return parts if len(parts) > 1 else text


def _id(text: str) -> str:
    from dualcalc import catalog

    _again(lambda: catalog.draft(text, expression="t"))
    if text in catalog.load():
        raise click.BadParameter(f"the id {text!r} is taken; choose another")
    return text


def _slug(name: str | None) -> str | None:
    """An id made of a display name."""
    return re.sub(r"\W+", "_", name.lower(), flags=re.ASCII).strip("_")[:40] or None if name else None
