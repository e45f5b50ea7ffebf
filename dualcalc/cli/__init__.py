"""The command line: `dualcalc derive | compile | hermite | bound | plot | phase | compare | nearest | doctor | kernel |
solve | features | catalog`.

In a terminal it prints tables, trees and formulas in two dimensions; in a pipe plain text; with `--json` one JSON
document. Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 a check failed, 2 bad input, 3 no
closed form. SymPy, NumPy, JAX and rich are imported inside the commands, so that `--help` and `catalog list` are
instant; for that, these files may import from any other, like `dualcalc/__init__.py`.
"""

from __future__ import annotations

import click

from .console import CATALOG
from .entries import group as catalog
from .formulas import bound, compile_, derive, hermite, plot
from .kernels import features, kernel, solve
from .questions import compare, doctor, nearest, phase


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dualcalc")
@CATALOG
def main() -> None:
    """Compile an activation into the kernels of infinitely wide networks (NNGP and NTK).

    EXPR is a formula in t, such as "t*Phi(t)", or a catalog id, such as gelu. Put -- before one that begins with a
    minus sign.
    """


for command in (
    derive, compile_, hermite, bound, plot, phase, compare, nearest, doctor, kernel, solve, features, catalog
):  # fmt: skip
    main.add_command(command)
