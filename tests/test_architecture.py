"""The order of the files, the two halves, and what may never occur in them: read from their syntax trees."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dualcalc"
ORDER = (
    "runtime catalog parsing rational atoms gaussian dual balls pieces certified quadrature expansions bounds"
    " mixtures tables approximate printing codegen verify gram fusion layers networks conv finite inference"
    " series sketch nystrom layerwise features ridge solvers sizing cluster estimators adapters images"
    " plots phases tools facts site serve"
).split()
EXEMPT = {"__init__", "__main__", "demo"}  # and cli/
SYMBOLIC = {"parsing", "rational", "atoms", "gaussian", "dual", "balls", "pieces", "certified", "quadrature"}
SYMBOLIC |= {"expansions", "bounds", "mixtures", "tables", "approximate", "printing", "verify"}
NUMERIC = {"runtime", "gram", "fusion", "layers", "networks", "conv", "finite", "inference"}
NUMERIC |= {
    "series",
    "sketch",
    "nystrom",
    "layerwise",
    "features",
    "ridge",
    "solvers",
    "sizing",
    "cluster",
    "estimators",
    "adapters",
    "images",
}
FILES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}
FILES |= {f"cli.{path.stem}": path for path in sorted(PACKAGE.glob("cli/*.py"))}
PRIVATE = ("jax._src", "jax.core", "jax.interpreters", "jaxlib")
EXECUTING = {
    "eval",
    "exec",
    "__import__",
    "builtins.eval",
    "builtins.exec",
}  # p.eval(0) of a polynomial is none of them
PARSING = {"sympify", "parse_expr", "parse_latex"}  # SymPy's own, which evaluate text


def imports(tree: ast.AST) -> list[str]:
    """Every module that the file imports, functions' own imports included; relative ones as `dualcalc.name`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["dualcalc" if node.level else "", node.module]))
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def inside(tree: ast.AST) -> set[str]:
    """The files of the package that a file imports."""
    parts = [name.split(".") for name in imports(tree)]
    return {p[1] for p in parts if p[0] == "dualcalc" and len(p) > 1}


def outside(tree: ast.AST) -> set[str]:
    return {name.split(".")[0] for name in imports(tree)}


def private(tree: ast.AST) -> list[str]:
    """Uses of JAX's private modules, imported or reached by attribute."""
    reached = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [name for name in (*imports(tree), *reached) for bad in PRIVATE if f"{name}.".startswith(f"{bad}.")]


def executing(tree: ast.AST, where: str = "") -> list[str]:
    """Calls that run text, as `function.callee`."""
    out = []
    for node in ast.iter_child_nodes(tree):
        scope = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else where
        if isinstance(node, ast.Call):
            callee = ast.unparse(node.func)
            runs = callee in EXECUTING or callee.split(".")[-1] in PARSING
            out += [f"{where}.{callee}"] if runs else []
        out += executing(node, scope)
    return out


def parse(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


def test_every_file_has_a_place():
    staged = {name for name in FILES if not exempt(name)}
    assert staged <= set(ORDER), "a new file: put it into ORDER, as DESIGN.md's table has it"
    assert [path.parent.name for path in PACKAGE.glob("*/__init__.py")] == ["cli"]


def exempt(name: str) -> bool:
    return name in EXEMPT or name.startswith("cli.")


@pytest.mark.parametrize("name", [name for name in FILES if not exempt(name)])
def test_imports_only_what_is_above(name):
    used = inside(parse(name))
    assert used <= set(ORDER), f"{name} imports {used - set(ORDER)}"
    above = set(ORDER[: ORDER.index(name)])
    assert used <= above, f"{name} imports {used - above}, which stand below it"


@pytest.mark.parametrize("name", FILES)
def test_halves(name):
    used = outside(parse(name))
    if name in SYMBOLIC | {"catalog"}:
        assert not used & {"jax", "jaxlib"}
    if name in NUMERIC | {"catalog"}:
        assert not used & {"sympy", "flint"}


@pytest.mark.parametrize("name", FILES)
def test_public_jax_only_and_no_text_is_run(name):
    assert not private(parse(name))
    assert executing(parse(name)) == (["load.exec"] if name == "codegen" else [])


def test_the_guards_see():
    tree = ast.parse(
        "import jax.core\nfrom jax import interpreters\nfrom .gram import tile\nfrom . import conv\n"
        "def f(s):\n    import dualcalc.plots\n    from sympy import S\n    jax._src.x()\n"
        "    return sp.sympify(s) + eval(s) + p.eval(0)\n"
    )
    assert inside(tree) == {"gram", "conv", "plots"} and outside(tree) >= {"jax", "sympy"}
    assert len(private(tree)) >= 3 and executing(tree) == ["f.sp.sympify", "f.eval"]


def run(code: str) -> dict:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_is_light():
    loaded = run(
        "import json, sys, dualcalc\n"
        "print(json.dumps([m for m in ('jax', 'jaxlib', 'sympy', 'numpy', 'numba', 'flint') if m in sys.modules]))"
    )
    assert loaded == []


def test_jax_is_left_as_it_is():
    """The configuration, and the warnings filter, before and after everything of ours is imported."""
    names = [f"dualcalc.{name}" for name in FILES if name not in ("__main__", "demo")]
    same = run(
        "import importlib, json, jax, warnings\nbefore, filters = dict(jax.config.values), len(warnings.filters)\n"
        f"[importlib.import_module(name) for name in {names}]\n"
        "after = dict(jax.config.values)\n"
        "print(json.dumps([k for k in after if repr(after[k]) != repr(before.get(k))]))"
    )
    assert same == []
