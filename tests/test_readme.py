"""README.md does what it says: its Python and its commands run, what they print is what it shows, its table is current.

`python -m tests.test_readme` brings the table and the shown outputs up to date, where they hold no `...`.
"""

import atexit
import contextlib
import doctest
import functools
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

import pytest

from dualcalc import catalog
from dualcalc.dual import resolve

pytestmark = pytest.mark.docs
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


# One process for all pages that a worker runs, as a page costs less to run than to import and to compile what it needs.
# `make test-slow` has each page, and each command, in a process of its own, as a user has them.


def answer() -> None:
    """Run what comes on stdin, one line for each page or command, and answer with what it prints, one line each."""
    import jax

    answers, sys.stdout = sys.stdout, sys.stderr
    started = dict(os.environ)
    for line in sys.stdin:
        folder, sources, arguments = json.loads(line)
        os.chdir(folder)
        jax.config.update("jax_enable_x64", False)
        os.environ.clear()
        os.environ.update(started)
        json.dump(_printed(sources) if arguments is None else _called(arguments), answers)
        print(file=answers, flush=True)


def _printed(sources: list[str]) -> list[str] | str:
    """What each prints, in one namespace; or a traceback."""
    space, outputs = {"__name__": "__main__"}, []
    for source in sources:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                exec(compile(source, "<page>", "exec"), space)
            except Exception:
                return traceback.format_exc()
        outputs.append(printed.getvalue())
    return outputs


def _called(arguments: list[str]) -> tuple[int, str]:
    """Exit status, and what `dualcalc` prints."""
    from dualcalc.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(printed):
        try:
            main(arguments, prog_name="dualcalc")
        except SystemExit as end:
            return end.code or 0, printed.getvalue()
    raise AssertionError("a command ends with its exit code")


@functools.cache
def _process() -> subprocess.Popen:
    command = [sys.executable, "-c", "from tests.test_readme import answer; answer()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes)
    atexit.register(process.wait)
    atexit.register(process.stdin.close)  # first: it ends the process
    return process


def _asked(folder: Path, sources: list[str], arguments: list[str] | None):
    process = _process()
    print(json.dumps([str(folder), sources, arguments]), file=process.stdin, flush=True)
    line = process.stdout.readline()
    assert line, "the process of the pages has ended"
    return json.loads(line)


def share_python(blocks: list[Shown], folder: Path) -> list[str]:
    """`run_python` in the process of all pages."""
    found = _asked(folder, [block.source for block in blocks], None)
    assert isinstance(found, list), found
    return found


def share_command(command: str, folder: Path) -> tuple[int, str]:
    """`run_command`, but that dualcalc runs in the process of all pages."""
    name, *arguments = shlex.split(command)
    return tuple(_asked(folder, [], arguments)) if name == "dualcalc" else run_command(command, folder)


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


def check_python(page: Path, folder: Path, run=share_python) -> int:
    """Run the python blocks of a page in one namespace; how many there are."""
    blocks = python_blocks(page.read_text())
    for block, printed in zip(blocks, run(blocks, folder) if blocks else [], strict=True):
        assert printed == "" or block.output is not None, f"{page.name} does not show what this prints:\n{block.source}"
        assert block.output is None or same(block.output, printed), f"{block.source}\nprints\n{printed}"
    return len(blocks)


def check_commands(page: Path, folder: Path, run=share_command) -> int:
    """Run the commands of a page, but for those of NOT_RUN, in one folder; how many there are."""
    shown = [block for block in commands(page.read_text()) if not block.source.startswith(NOT_RUN)]
    for block in shown:
        status, printed = run(block.source, folder)
        refused = block.output is not None and block.output.startswith("Error")
        assert (status != 0) == refused, f"{block.source} exits with {status}:\n{printed}"
        assert block.output is None or same(block.output, printed), f"{block.source}\nprints\n{printed}"
    return len(shown)


OWN = pytest.param(run_python, run_command, marks=pytest.mark.slow, id="own processes")
SHARED = pytest.param(share_python, share_command, id="shared process")


@pytest.mark.parametrize("python, _", [SHARED, OWN])
def test_python_blocks(tmp_path, python, _):
    assert check_python(README, tmp_path, python) > 3


@pytest.mark.parametrize("_, command", [SHARED, OWN])
def test_commands(tmp_path, _, command):
    assert check_commands(README, tmp_path, command) > 3


def test_pages_share_no_names_and_no_settings(tmp_path):
    first = "import os, jax\njax.config.update('jax_enable_x64', True)\nos.environ['LEFT'] = os.getcwd()"
    assert share_python([Shown(first, None, (0, 0))], tmp_path) == [""]
    see = "import os, jax\nprint(jax.config.jax_enable_x64, 'LEFT' in os.environ)"
    assert share_python([Shown(see, None, (0, 0))], tmp_path) == ["False False\n"]
    with pytest.raises(AssertionError, match="NameError"):
        share_python([Shown("jax", None, (0, 0))], tmp_path)


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
