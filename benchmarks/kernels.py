"""Speed of the generated code and of the compiler: what `make bench` runs.

For every catalog entry that has a closed form, in float64: the time of `derive` and `emit` (in a fresh process, imports
done), the time that XLA takes to compile k and kdot, and the time of both on 10^6 covariances over that of
`jnp.arccos` on the same cosines. The three functions alternate, so that a load from elsewhere falls on all of them;
what is compared are medians. Then the start-up time of the command line. The tables go to `benchmarks/RESULTS.md`.
"""

import argparse
import datetime
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dualcalc import catalog, codegen
from dualcalc.dual import derive
from dualcalc.gaussian import ExpPhi2

RESULTS = Path(__file__).with_name("RESULTS.md")
QUICK = ("relu", "erf", "gelu", "elu", "hardtanh", "sign", "abrelu", "normalized_gaussian")
COUNT, SEED = 10**6, 0
BUDGET = 2.0  # seconds for the runs of one entry, three of each function excepted
# Goals: seconds to compile k and kdot together; times jnp.arccos; seconds of derive and emit; seconds of start-up
COMPILE, NAMED, BIVARIATE, TABLE1, ANY = 2.0, {"relu": 3.0, "erf": 3.0, "gelu": 3.0}, 25.0, 3.0, 8.0
COMMANDS = {"--help": 0.4, "catalog list": 0.6, "derive gelu": None, "compile gelu": None}


class Emitted(NamedTuple):
    """What the compiler made of one entry, and its time in seconds."""

    source: str
    bivariate: bool  # k or kdot calls the bivariate normal distribution function
    jumps: bool  # the NTK has no value
    parameters: tuple[float, ...]
    seconds: float


class Row(NamedTuple):
    """One line of the table; kdot is None where the activation jumps."""

    id: str
    bivariate: bool
    derive: float
    compile_k: float
    compile_kdot: float | None
    k: float
    kdot: float | None

    def misses(self) -> list[str]:
        """What does not reach its goal, in words."""
        ratio = NAMED.get(self.id, BIVARIATE if self.bivariate else None)
        derived = TABLE1 if catalog.get(self.id).table1 else ANY
        compiled = self.compile_k + (self.compile_kdot or 0.0)
        found = [f"{self.id}: derive and emit {self.derive:.2f} s, goal {derived:g} s"] * (self.derive > derived)
        found += [f"{self.id}: k and kdot compile in {compiled:.2f} s, goal {COMPILE:g} s"] * (compiled > COMPILE)
        for name, value in (("k", self.k), ("kdot", self.kdot)):
            if ratio is not None and value is not None and value > ratio:
                found.append(f"{self.id}: {name} takes {value:.1f} times arccos, goal {ratio:g}")
        return found

    def cells(self) -> tuple[str, ...]:
        numbers = [(self.derive, 2), (self.compile_k, 2), (self.compile_kdot, 2), (self.k, 1), (self.kdot, 1)]
        texts = ("–" if x is None else f"{x:.{digits}f}" for x, digits in numbers)
        return (self.id, "yes" if self.bivariate else "", *texts)


HEAD = ("entry", "Phi2", "derive + emit, s", "compile k, s", "compile kdot, s", "k / arccos", "kdot / arccos")


# ------------------------------------------------------------------------------------------------------ the compiler


def emitted(id: str, connection) -> None:
    """Send one entry's `Emitted`; in a process of its own, where no cache is warm."""
    start = time.perf_counter()
    dual = derive(id)
    source = codegen.emit(dual)
    seconds = time.perf_counter() - start
    values = tuple(float(dual.defaults.get(s.name, 1)) for s in dual.parameters)
    orders = () if dual.activation is None else (0,) if dual.jumps else (0, 1)
    bivariate = any(term.head.has(ExpPhi2) for m in orders for term in dual.member(m, m))
    connection.send(Emitted(source, bivariate, bool(dual.jumps), values, seconds))


def emit_all(ids: list[str]) -> dict[str, Emitted]:
    """One process after the other, forked from one that has imported everything and run nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dualcalc.codegen"])
    found = {}
    for id in ids:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=emitted, args=(id, sender))
        process.start()
        sender.close()
        found[id] = receiver.recv()
        process.join()
    return found


# -------------------------------------------------------------------------------------------------------------- code


def covariances() -> tuple[jax.Array, ...]:
    """(q12, q11, q22, c), (COUNT,) each: norms uniform in [0.5, 2], cosines c uniform in [-1, 1]."""
    rng = np.random.default_rng(SEED)
    a, b = rng.uniform(0.5, 2.0, (2, COUNT))
    c = rng.uniform(-1.0, 1.0, COUNT)
    return tuple(map(jnp.asarray, (c * a * b, a * a, b * b, c)))


def compiled(function: Callable, *arguments) -> tuple[Callable, float]:
    """The function compiled by XLA for these arguments, and the seconds that tracing and compiling took."""
    start = time.perf_counter()
    executable = jax.jit(function).lower(*arguments).compile()
    return executable, time.perf_counter() - start


def medians(calls: list[Callable[[], jax.Array]], repeats: int) -> list[float]:
    """The median seconds of each call; the calls alternate. Slow ones run fewer times, three at least."""
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call().block_until_ready()
    end = time.perf_counter() + BUDGET
    for done in range(repeats):
        if done >= 3 and time.perf_counter() > end:
            break
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call().block_until_ready()
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def measure(id: str, entry: Emitted, arrays: tuple[jax.Array, ...], repeats: int) -> tuple[Row, float]:
    """One entry's row, and the seconds of arccos beside it."""
    module = codegen.load(entry.source, "jax")
    *q, c = arrays
    arguments = (*q, *(jnp.asarray(value, jnp.float64) for value in entry.parameters))
    arccos, _ = compiled(jnp.arccos, c)
    calls, compiling = [lambda: arccos(c)], []
    for function in (module.K00,) if entry.jumps else (module.K00, module.K11):
        executable, seconds = compiled(function, *arguments)
        compiling.append(seconds)
        calls.append(lambda executable=executable: executable(*arguments))
    unit, *times = medians(calls, repeats)
    compile_k, compile_kdot, *_ = *compiling, None
    k, kdot, *_ = *(t / unit for t in times), None
    return Row(id, entry.bivariate, entry.seconds, compile_k, compile_kdot, k, kdot), unit


def start_up(repeats: int) -> list[tuple[str, float, float | None]]:
    """(command, median seconds from start to exit, goal)."""
    rows = []
    for command, goal in COMMANDS.items():
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            arguments = [sys.executable, "-m", "dualcalc", *command.split()]
            subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        rows.append((command, statistics.median(times), goal))
    return rows


# ------------------------------------------------------------------------------------------------------------ report


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table, first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells):
        first, *rest = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]) + " |"

    rule = "|" + "|".join([":" + "-" * (widths[0] + 1), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def report(rows: list[Row], commands, date: str, load: tuple[str, str], unit: float, repeats: int) -> str:
    goals = [f"{c}: {s:.2f} s, goal {g:g} s" for c, s, g in commands if g is not None and s > g]
    missed = [f"- {text}" for row in rows for text in row.misses()] + [f"- dualcalc {text}" for text in goals]
    versions = ", ".join(f"{name} {version(name)}" for name in ("dualcalc", "jax", "jaxlib", "numpy", "sympy"))
    shown = [(f"dualcalc {c}", f"{s:.2f}", "–" if g is None else f"{g:g}") for c, s, g in commands]
    slowest = max(rows, key=lambda row: row.compile_k + (row.compile_kdot or 0.0))
    return "\n".join(
        [
            "# Measured by `make bench`",
            "",
            f"{date}; {processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}.",
            f"Load average before: {load[0]}; after: {load[1]} (this program alone gives 1 to 2). Under a load from",
            "elsewhere single figures can double, seconds above all; the alternating runs keep the ratios steadier.",
            "",
            f"Ratios: medians of 3 to {repeats} alternating runs over {COUNT:,} float64 elements in one process, norms",
            f"uniform in [0.5, 2], cosines uniform in [-1, 1]; `jnp.arccos` itself takes {unit * 1e3:.0f} ms (median).",
            "Parameters are traced arguments at their catalog defaults. Compiling includes tracing, without a cache on",
            "disc. `derive` and `emit` run in a fresh process each, after the imports. A dash: the NTK has no value.",
            "",
            f"Goals: `derive` and `emit` within {TABLE1:g} s for rows of the paper's Table 1, {ANY:g} s for the rest;",
            f"k and kdot together compile within {COMPILE:g} s; relu, erf and gelu take at most {NAMED['relu']:g}",
            f"times `arccos`, entries with the bivariate normal (Phi2) {BIVARIATE:g} times. The others have no goal.",
            "",
            "## Missed",
            "",
            *(missed or ["Nothing."]),
            "",
            "## Catalog entries",
            "",
            f"Slowest to compile: {slowest.id}, {slowest.compile_k + (slowest.compile_kdot or 0.0):.2f} s.",
            "",
            table(HEAD, [row.cells() for row in rows]),
            "",
            "## Command line",
            "",
            table(("command", "start to exit, s", "goal, s"), shown),
            "",
        ]
    )


def load_average() -> str:
    return ", ".join(f"{x:.2f}" for x in os.getloadavg())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few entries, printed only")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="the date in the report")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each function")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    before = load_average()
    ids = [id for id, entry in catalog.load().items() if entry.closed_form and (not options.quick or id in QUICK)]
    commands = start_up(3)
    sources = emit_all(ids)
    arrays = covariances()
    rows, units = [], []
    print("  ".join(HEAD))
    for id in ids:
        row, unit = measure(id, sources[id], arrays, options.repeats)
        rows.append(row)
        units.append(unit)
        print("  ".join(row.cells()), flush=True)
    load = (before, load_average())
    text = report(rows, commands, options.date, load, statistics.median(units), options.repeats)
    print(text)
    if not options.quick:
        _, features, rest = RESULTS.read_text().partition("\n## Features")  # of other benchmarks
        RESULTS.write_text(text + features + rest)
        print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
