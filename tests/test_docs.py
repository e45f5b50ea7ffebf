"""The documentation site does what it says: its code runs, it builds without a warning, and its pages fetch nothing.

`python -m tests.test_docs` brings the shown outputs up to date, where they hold no `...` (`-m tests.test_docs bounds`:
those of one page).
"""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import dualcalc
from tests.test_readme import OWN, ROOT, SHARED, check_commands, check_python, environment, refreshed

pytestmark = pytest.mark.docs
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# What a browser loads unasked, by element; a link in <a> is the reader's choice.
LOADED = {"script": "src", "link": "href", "img": "src", "source": "src", "iframe": "src", "object": "data"}
ELSEWHERE = re.compile(r"\s*(\w+:)?//")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.parametrize("python, command", [SHARED, OWN])
def test_page(page, python, command, tmp_path):
    ran = check_python(page, tmp_path, python) + check_commands(page, tmp_path, command)
    assert ran or page.stem in ("api", "modules", "security", "contributing")


def test_commands_of_contributing(tmp_path):
    """The steps to a new activation, one after the other, in a folder of their own."""
    text = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "catalog" / "README.md").read_text()
    asking = {"dualcalc catalog new", "dualcalc catalog browse"}
    steps = [x for x in re.findall(r"`(dualcalc [^`]+)`", text) if x not in asking]
    assert "new" in steps[0] and "verify" in steps[-1], steps
    script = "\n".join(["set -e", "mkdir drafts", "export DUALCALC_CATALOG=drafts", *steps])
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Fetched(HTMLParser):
    """The addresses that a page loads, those of its own style attributes and elements included."""

    def __init__(self, text: str):
        super().__init__()
        self.found = styled(text)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(LOADED.get(tag, ""))
        if address and dict(attrs).get("rel") not in ("search", "index", "next", "prev", "canonical"):
            self.found.append(address)


def styled(text: str) -> list[str]:
    """What style sheets load."""
    return re.findall(r"url\(['\"]?([^)'\"]+)", text) + re.findall(r"@import ['\"]([^'\"]+)", text)


def outside(folder: Path) -> list[tuple[str, str]]:
    """(file, address) of all that pages and style sheets load from elsewhere."""
    loaded = [(file, x) for file in folder.rglob("*.html") for x in Fetched(file.read_text()).found]
    loaded += [(file, x) for file in folder.rglob("*.css") for x in styled(file.read_text())]
    assert len(loaded) > 3 * len(PAGES)
    return [(file.name, address) for file, address in loaded if ELSEWHERE.match(address)]


def test_site(tmp_path):
    """It builds without a warning; formulas are MathML, and nothing is fetched."""
    built = tmp_path / "docs"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-q",
            "-W",
            "--keep-going",
            "-b",
            "html",
            "-d",
            tmp_path / "cache",
            DOCS,
            built,
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert outside(built) == []
    page = (built / "bounds.html").read_text()
    assert page.count("<math") > 20 and "$" not in re.sub(r"<(pre|code|script).*?</\1>", "", page, flags=re.DOTALL)
    assert re.search(r"<dt>.*>kappa<.*</dt>", (built / "api.html").read_text())  # columns of docstrings are lists


def test_every_name_is_in_the_reference():
    named = set(re.findall(r":: dualcalc\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE))
    assert set(dir(dualcalc)) - named == {"__version__", "symbols"}  # no functions or classes


def test_wrong_formulas_are_warnings(tmp_path):
    wrong = {
        r"\frac{a": "unbalanced",
        r"\frac{a}": "mfrac",
        r"\nosuch x": "unknown",
        "x_": "Missing",
        "x & y": "ParseError",
    }
    (tmp_path / "index.md").write_text("# Title\n\n$a < b$\n\n" + "\n\n".join(f"$${latex}$$" for latex in wrong))
    settings = f"import sys\nsys.path.insert(0, {str(DOCS)!r})\nextensions = ['myst_parser', 'mathml']\n"
    settings += "myst_enable_extensions = ['dollarmath']\nhtml_math_renderer = 'mathml'\nhtml_theme = 'basic'\n"
    (tmp_path / "conf.py").write_text(settings)
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", tmp_path, tmp_path / "built"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    warnings = [line for line in done.stderr.splitlines() if "cannot convert" in line]
    assert len(warnings) == len(wrong), done.stderr
    assert all(reason in line for reason, line in zip(wrong.values(), warnings, strict=True)), warnings
    page = (tmp_path / "built" / "index.html").read_text()
    assert page.count("<math") == 1 and "<code>x &amp; y</code>" in page


@pytest.mark.parametrize(
    "html, found",
    [
        ('<script src="https://cdn.example/x.js"></script>', ["https://cdn.example/x.js"]),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', ["//cdn.example/x.css"]),
        ('<p style="background: url(http://x.example/a.png)">', ["http://x.example/a.png"]),
        ('<a href="https://arxiv.org">', []),
        ('<img src="a.png">', ["a.png"]),
    ],
)
def test_the_guard_sees(html, found):
    assert Fetched(html).found == found


if __name__ == "__main__":
    for page in [page for page in PAGES if not sys.argv[1:] or page.stem in sys.argv[1:]]:
        page.write_text(refreshed(page.read_text()))
