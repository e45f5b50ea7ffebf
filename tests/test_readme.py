"""README.md does what it says: its Python and its commands run, what they print is what it shows, its table is current.

`python -m tests.test_readme` brings the table and the shown outputs up to date, where they hold no `...`.
"""

import doctest
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from dualcalc import catalog
from dualcalc.dual import resolve

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TABLE = re.compile(r"(?<=<!-- activations: python -m tests.test_readme -->\n).*?(?=<!-- end -->)", re.DOTALL)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = ("make ", "pip install ", "git clone ")

# Runs the sources that come on stdin in one namespace; what each prints goes to stdout as a JSON list.
RUNNER = """
import contextlib, io, json, sys
space, outputs = {"__name__": "__main__"}, []
for source in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(source, "<page>", "exec"), space)
    outputs.append(printed.getvalue())
json.dump(outputs, sys.stdout)
"""


class Shown(NamedTuple):
    """A piece of Python or a command, and the output shown for it; `span` is the output's place in the page."""

    source: str
    output: str | None
    span: tuple[int, int]


def python_blocks(text: str) -> list[Shown]:
    """The python blocks; a text block that follows one at once, but for blank lines, is its output."""
    found, fences = [], list(FENCE.finditer(text))
    for i, fence in enumerate(fences):
        after = fences[i + 1] if i + 1 < len(fences) else None
        if fence[1] == "python":
            shown = after is not None and after[1] == "text" and not text[fence.end() : after.start()].strip()
            found.append(Shown(fence[2], after[2], after.span(2)) if shown else Shown(fence[2], None, (0, 0)))
    return found


def commands(text: str) -> list[Shown]:
    """The lines `$ command` of console blocks, with the lines below them as output."""
    found = []
    for fence in FENCE.finditer(text):
        if fence[1] == "console":
            for part in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", fence[2], re.MULTILINE):
                start, end = (fence.start(2) + place for place in part.span(2))
                found.append(Shown(part[1], part[2] or None, (start, end)))
    return found


def run_python(blocks: list[Shown], folder: Path) -> list[str]:
    sources = json.dumps([block.source for block in blocks])
    command = [sys.executable, "-c", RUNNER]
    done = subprocess.run(command, input=sources, capture_output=True, text=True, cwd=folder, env=environment())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run_command(command: str, folder: Path) -> tuple[int, str]:
    """Exit status, and stdout and stderr as a terminal shows them."""
    done = subprocess.run(
        ["bash", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=environment(),
        timeout=100,
    )
    return done.returncode, done.stdout


def environment() -> dict[str, str]:
    """That of a user: this interpreter's commands first, no further catalog."""
    ours = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": ours, catalog.ENVIRONMENT: ""}


def same(shown: str, printed: str) -> bool:
    """Equal, but for what the shown text leaves out with `...`."""
    return doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS)


# ------------------------------------------------------------------------------------------------- the table of entries


def activation_table() -> str:
    known = catalog.load()
    ordered = sorted(known.values(), key=lambda entry: (entry.table1 or 99, entry.id))
    rows = ["| id | formula | Table 1 | NNGP | NTK | closed form |", "|---|---|---|---|---|---|"]
    for entry in ordered:
        nngp, ntk = (_cited(known.references, keys) for keys in (entry.references.nngp, entry.references.ntk))
        cells = (f"`{entry.id}`", f"`{entry.formula}`", str(entry.table1 or ""), nngp, ntk, _closed(entry))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _cited(references, keys) -> str:
    links = []
    for key in keys:
        ref = references[key]
        url = f"https://arxiv.org/abs/{ref.arxiv}" if ref.arxiv else f"https://doi.org/{ref.doi}" if ref.doi else ""
        name = f"{ref.author.split(',')[0]} {ref.year}"
        links.append(f"[{name}]({url})" if url else name)
    return ", ".join(links)


def _closed(entry) -> str:
    if not entry.closed_form:
        return "no"
    jumps = entry.kernel is None and resolve(entry.id).jumps
    return "k only (jump)" if jumps else "yes"


# ------------------------------------------------------------------------------------------------------------ the tests


def check_python(page: Path, folder: Path) -> int:
    """Run the python blocks of a page in one namespace; how many there are."""
    blocks = python_blocks(page.read_text())
    for block, printed in zip(blocks, run_python(blocks, folder) if blocks else [], strict=True):
        assert printed == "" or block.output is not None, f"{page.name} does not show what this prints:\n{block.source}"
        assert block.output is None or same(block.output, printed), f"{block.source}\nprints\n{printed}"
    return len(blocks)


def check_commands(page: Path, folder: Path) -> int:
    """Run the commands of a page, but for those of NOT_RUN, in one folder; how many there are."""
    shown = [block for block in commands(page.read_text()) if not block.source.startswith(NOT_RUN)]
    for block in shown:
        status, printed = run_command(block.source, folder)
        refused = block.output is not None and block.output.startswith("Error")
        assert (status != 0) == refused, f"{block.source} exits with {status}:\n{printed}"
        assert block.output is None or same(block.output, printed), f"{block.source}\nprints\n{printed}"
    return len(shown)


def test_python_blocks(tmp_path):
    assert check_python(README, tmp_path) > 3


def test_commands(tmp_path):
    assert check_commands(README, tmp_path) > 3


def test_make_targets():
    """Those that README and CONTRIBUTING name."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = README.read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"(?:`|^\$ |^)make ([\w-]+)", text, re.MULTILINE)
    assert {"demo", "test"} <= set(named) <= set(targets), set(named) - set(targets)


def test_activation_table():
    found = TABLE.search(README.read_text())
    assert found and found[0] == activation_table(), "run: python -m tests.test_readme"


@pytest.mark.parametrize("shown, printed, equal", [("1\n...\n3\n", "1\n2\n3\n", True), ("1.0\n", "1.5\n", False)])
def test_the_guard_sees(shown, printed, equal):
    assert same(shown, printed) == equal


def refreshed(text: str) -> str:
    """A page with its outputs as they are today, where they hold no `...`."""
    blocks, calls = python_blocks(text), commands(text)
    with tempfile.TemporaryDirectory() as folder:
        pairs = list(zip(blocks, run_python(blocks, Path(folder)) if blocks else [], strict=True))
    with tempfile.TemporaryDirectory() as folder:
        pairs += [(c, run_command(c.source, Path(folder))[1]) for c in calls if not c.source.startswith(NOT_RUN)]
    for block, printed in sorted(pairs, key=lambda pair: -pair[0].span[0]):
        if block.output is None or same(block.output, printed):
            continue
        if "..." in block.output:
            print(f"by hand, as it has an ellipsis:\n{block.source}\n{printed}")
        else:
            text = text[: block.span[0]] + printed + text[block.span[1] :]
    return text


if __name__ == "__main__":
    README.write_text(refreshed(TABLE.sub(lambda _: activation_table(), README.read_text())))
