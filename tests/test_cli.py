"""The command line: what it prints, its exit codes, no traceback for any input, no half-written file, and its speed."""

import json
import os
import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest
from click.testing import CliRunner

import dualcalc as dc
from dualcalc import catalog, cli
from dualcalc.cli import console, entries, formulas
from dualcalc.cli.network_text import build_network, read_network

SLACK = 3  # of the speed promised: this runs beside other tests


@pytest.fixture(autouse=True)
def _no_extra_folders(monkeypatch):
    monkeypatch.setenv(catalog.ENVIRONMENT, "")  # and restored: --catalog extends it


def run(*args, code=0, **kwargs):
    result = CliRunner().invoke(cli.main, [str(arg) for arg in args], **kwargs)
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    return result


def process(*args, **kwargs):
    command = [sys.executable, "-m", "dualcalc", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


# Speed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args, limit", [(["--help"], 0.4), (["catalog", "list"], 0.6), (["kernel", "-h"], 0.4)])
def test_speed(args, limit):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = process(*args)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0 and done.stdout and not done.stderr
    assert min(seconds) < limit * SLACK


@pytest.mark.parametrize("args", [["--help"], ["catalog", "list"], ["catalog", "list", "--json"], ["derive", "-h"]])
def test_light_commands_import_nothing_heavy(args):
    text = (
        "import sys; from dualcalc.cli import main\n"
        f"try: main({args})\nexcept SystemExit: pass\n"
        "heavy = {'jax', 'sympy', 'numpy', 'scipy', 'numba', 'flint', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# derive and compile -----------------------------------------------------------------------------------------------


def test_derive():
    text = run("derive", "Max(t, 0)").output
    assert "k = " in text and "kdot = " in text and "asin" in text and "Stein" in text and "degree 1" in text
    data = json.loads(run("derive", "sin(A*t + B)", "-p", "A=1.3", "--json").output)
    assert data["parameters"] == {"B": None} and "169" in data["k"] and data["derivation"]["steps"]
    assert data["kdot_refused"] is None and data["latex"]["k"]
    data = json.loads(run("derive", "sign", "--json").output)
    assert data["kdot"] is None and "jumps" in data["kdot_refused"] and data["jumps"] == ["0"] and data["parity"] == -1


def test_no_closed_form():
    result = run("derive", "tanh(t)", code=3)
    assert result.stdout == "" and result.stderr.startswith("Error: no closed form: tanh(t)")
    assert run("compile", "tanh", "--target", "latex", code=3).stdout == ""


def test_compile_without_closed_form(tmp_path):
    file = tmp_path / "tanh.py"
    run("compile", "tanh", "--target", "numpy", "--tol", "1e-4", "--norms", "0.5", "2", "-o", file)
    assert "norms 0.5 <= sqrt(q11), sqrt(q22) <= 2" in file.read_text()
    run("compile", "tanh", "--norms", "2", "1", code=2)
    for bad in (["--tol", "1e-20"], ["--tol", "a"], ["--norms", "0", "1"], ["--norms", "1", "inf"]):
        run("compile", "relu", *bad, code=2)  # looked at although there is a closed form
    assert "1e-12 to 0.1" in run("compile", "--help").output


@pytest.mark.parametrize(
    "args, said, unsaid",
    [
        (["derive", "tanh"], "`dualcalc compile`", "dc."),
        (["derive", "erf(t)*Heaviside(t)"], "`dualcalc compile`", "dc."),
        (["compile", "tanh", "--target", "latex"], "LaTeX needs a closed form", "dc."),
        (["kernel", "dense sign dense", "--data", "X.npy", "-o", "K.npy"], "--get nngp", "get="),
        (["kernel", "dense {sin(A*t)} dense", "--data", "X.npy", "-o", "K.npy"], "{sin(A*t)}(A=1.0)", "A*t)', A"),
        (["hermite", "sin(A*t)"], "-p A=1", "as A"),
        (["derive", "-t"], "Put -- before", "Traceback"),
        (["catalog", "list", "--catalog", "nosuch"], "--catalog", "$DUALCALC"),
        (["kernel", "dense relu", "--data", "X.npy", "-o", ""], "an empty name", "Traceback"),
        (["kernel", "dense relu", "--data", "X.npy", "-o", "X.npy", "--force"], "choose another name", "Traceback"),
        (["catalog", "verify", "relu", "--seed", "-1"], "--seed", "internal"),
    ],
)
def test_advice_is_in_the_words_of_the_command_line(args, said, unsaid, data, monkeypatch):
    monkeypatch.chdir(data)
    result = CliRunner().invoke(cli.main, args)
    assert result.exit_code in (0, 2, 3) and said in result.output and unsaid not in result.output, result.output


def test_hermite():
    data = json.loads(run("hermite", "Max(t, 0)", "--degree", 4, "--json").output)
    assert data["coefficients"][1] == pytest.approx(0.5, abs=1e-15) and len(data["coefficients"]) == 5
    assert "beyond degree 3" in run("hermite", "tanh", "--degree", 3).output
    assert "+/-" in run("hermite", "sin(A*t)", "-p", "A=1/2", "--degree", 3, "--certified").output
    run("hermite", "exp(t**2)", code=2)
    run("hermite", "gelu", "--norm", -1, code=2)


def test_bound():
    text = run("bound", "relu", "--degree", 10, "--cosine", 0.9).output
    assert "Parseval" in text or "parseval" in text
    rows = json.loads(run("bound", "gelu", "--degree", 10, "--certified", "--json").output)
    assert rows and all(row["proved"] and row["certified"] and row["value"] >= 0 for row in rows)
    run("bound", "relu", "--cosine", 2, code=2)
    for more, certified in ([], "no"), (["--certified"], "yes"):
        head, row = (line.split() for line in run("bound", "gelu", *more).stdout.splitlines()[:2])
        assert head[-2:] == ["theorem", "certified"] and row[-2:] == ["yes", certified]


def test_parameters():
    assert "1/3" in run("derive", "exp(A*t)", "-p", "A=1/3").output
    assert "polynomial" in run("derive", "polynomial", "-p", "a=1,-2,1/2").output
    for bad in ("A", "A=", "A=x", "A=1;2", "A=__import__('os')", "1=2", "A=1e9999", "activation=3", "assume=1", "Z=1"):
        run("derive", "exp(A*t)", "-p", bad, code=2)
    run("derive", "exp(A*t)", "-p", "A=1", "-p", "A=2", code=2)


HOSTILE = [
    "", " ", "t*", "foo", "__import__('os').system('true')", "t.__class__", "lambda: 0", "(" * 300 + "t" + ")" * 300,
    "t" * 5000, "t**t", "t**9999999", "9**9**9", "\x1b[31mt", "t\x00", "1/0", "t/0", "[t]", "{t}", "t if t else 0",
    "t;t", "sqrt(-1)", "log(t)", "q11", "'t'", "ö", "../../etc/passwd", "[red]t[/red]", "t\nt",
]  # fmt: skip


@pytest.mark.parametrize("expr", HOSTILE)
def test_hostile_formulas(expr):
    result = run("derive", expr, code=2)
    assert result.stdout == "" and result.stderr and "\x1b" not in result.stderr and "\x00" not in result.stderr


def test_caret_lines_are_kept():
    lines = run("derive", "t + sinn(t)", code=2).stderr.splitlines()
    assert lines[:3] == ["Error:", "t + sinn(t)", "    ^"] and "sin" in lines[3]


def test_internal_errors_have_a_code_of_their_own(monkeypatch):
    def broken(*_):
        raise KeyError("lost")

    monkeypatch.setattr(formulas, "dual_of", broken)
    assert "internal error" in run("derive", "t", code=console.INTERNAL).stderr
    monkeypatch.setenv("DUALCALC_TRACEBACK", "1")
    assert isinstance(CliRunner().invoke(cli.main, ["derive", "t"]).exception, KeyError)


def test_compile(tmp_path):
    assert console.TARGETS == __import__("dualcalc.codegen").codegen.TARGETS
    source = run("compile", "relu", "--target", "numpy").stdout
    space: dict = {"__name__": "generated"}
    exec(source, space)
    assert abs(space["k"](0.4, 1.3, 0.7) - 0.26537809151894) < 1e-13
    file = tmp_path / "relu.py"
    run("compile", "relu", "--target", "numpy", "-o", file)
    assert file.read_text() == source and os.listdir(tmp_path) == ["relu.py"]
    assert "--force" in run("compile", "identity", "-o", file, code=2).stderr
    assert file.read_text() == source
    data = json.loads(run("compile", "identity", "--target", "latex", "-o", file, "--force", "--json").stdout)
    assert data["source"] == file.read_text() and r"\begin{align}" in data["source"]
    run("compile", "t*", "-o", file, "--force", code=2)
    assert data["source"] == file.read_text()
    for bad in (tmp_path, tmp_path / "none" / "x.py", "/dev/null"):
        run("compile", "relu", "-o", bad, "--force", code=2)
    run("compile", "relu", "--target", "fortran", code=2)
    assert os.listdir(tmp_path) == ["relu.py"]


def test_nothing_half_written(tmp_path):
    def fails(file):
        file.write(b"half")
        raise ValueError("no")

    for old in (None, "old"):
        file = tmp_path / "file"
        if old:
            file.write_text(old)
        with pytest.raises(ValueError):
            console.write_file(file, fails, force=True)
        assert os.listdir(tmp_path) == ([] if old is None else ["file"])
    assert file.read_text() == "old"


# catalog ----------------------------------------------------------------------------------------------------------


def test_catalog_list(tmp_path):
    known = catalog.load()
    lines = run("catalog", "list").output.splitlines()
    assert len(lines) == len(known) + 1 and lines[0].split()[0] == "id"
    data = json.loads(run("catalog", "list", "--json").output)
    assert [e["id"] for e in data] == list(known)
    assert set(data[0]) == {"id", "title", "expression", "kernel", "table1", "references", "closed_form"}
    assert data[1]["references"] == {"nngp": ["williams1996"], "ntk": ["lee2019"]}
    (tmp_path / "mine.yaml").write_text("- id: mine\n  names: ['[bold] Mine']\n  expression: 3*t\n")
    for args in (["--catalog", tmp_path, "catalog", "list"], ["catalog", "list", "--catalog", tmp_path]):
        assert "[bold] Mine" in run(*args).output
    (tmp_path / "bad.yaml").write_text("- id: other\n  names: Mine\n")
    assert "k only" in next(line for line in lines if line.startswith("sign "))
    assert "bad.yaml:2:" in run("catalog", "list", "--catalog", tmp_path, code=2).stderr
    run("catalog", "list", "--catalog", tmp_path / "none", code=2)


def test_catalog_show():
    text = run("catalog", "show", "gelu").output
    for part in ("GELU", "Hendrycks", "row 8", "k = ", "kdot = ", "asin"):
        assert part in text
    assert "k only, for all q" in run("catalog", "show", "sign").output
    assert "no: tanh(t)" in run("catalog", "show", "tanh").output
    data = json.loads(run("catalog", "show", "normalized_gaussian", "--json").output)
    assert data["kernel"] and data["kdot"] and data["parameters"]["A"]["default"] == "1" and not data["refused"]
    assert "did you mean 'gelu'" in run("catalog", "show", "gelo", code=2).stderr


def test_catalog_verify(tmp_path, monkeypatch):
    result = run("catalog", "verify", "gelu", "sign", "tanh")
    assert "3 of 3 entries pass" in result.stdout and "tanh: no closed form" in result.stdout
    assert result.stdout.splitlines()[0].split()[:3] == ["entry", "recorded", "declared"]
    entry = "- id: mine\n  names: [Mine]\n  expression: 3*t\n  expected: [{q11: 1, q12: 0.5, q22: 1, k: 4.6}]\n"
    (tmp_path / "mine.yaml").write_text(entry)
    result = run("catalog", "verify", "--folder", tmp_path, code=1)
    assert "mine: FAILED declared" in result.stdout and "0 of 1" in result.stdout
    data = json.loads(run("catalog", "verify", "--folder", tmp_path, "--json", code=1).stdout)
    assert data[0]["laws"]["declared"]["passed"] is False and data[0]["laws"]["fresh"]["passed"]
    run("catalog", "verify", "nothing", code=2)


@pytest.mark.slow
def test_catalog_verify_in_processes(tmp_path):
    """The pool imports the console script's main module again."""
    done = process("catalog", "verify", "relu", "identity", "tanh", "--workers", 2, "--json")
    assert done.returncode in (0, 1) and done.stderr == ""
    assert [report["id"] for report in json.loads(done.stdout)] == ["relu", "identity", "tanh"]


def test_catalog_new(tmp_path):
    folder = tmp_path / "mine"
    new = ("catalog", "new", "--folder", folder)
    assert "no such folder" in run(*new, "--id", "mine", "--expression", "t", code=2).stderr and not folder.exists()
    folder.mkdir()
    result = run(*new, "--id", "my_relu", "--expression", "A*Max(t, 0)", "-p", "A=2", "--name", "My ReLU")
    assert str(folder / "my_relu.yaml") in result.output
    assert "My ReLU" in run("catalog", "list", "--catalog", folder).output
    assert run("derive", "my_relu", "--catalog", folder).output.count("A") > 2
    before = (folder / "my_relu.yaml").read_text()
    run(*new, "--id", "my_relu", "--expression", "t", code=2)
    run(*new, "--id", "relu", "--expression", "t", code=2)
    run(*new, "--id", "../escape", "--expression", "t", code=2)
    for id in ("references", "index", "schema"):
        assert "choose another" in run(*new, "--id", id, "--expression", "t", code=2).stderr
    assert "remove the file" in run(*new, "--id", "my_relu", "--expression", "t", code=2).stderr
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "index.html").write_text("mine")
    page = ("--page", tmp_path / "www", "--id", "other", "--expression", "t")
    assert "not an empty folder" in run(*new, *page, code=2).stderr and not (folder / "other.yaml").exists()
    run(*new, "--id", "bad", "--expression", "t*", code=2)
    run(*new, "--id", "bad", "--expression", "t", "--kernel", "q12", code=2)
    run(*new, "--id", "bad", "--kernel", "-q12", code=2)
    assert "-p A=1" in run(*new, "--id", "bad", "--expression", "A*t", code=2).stderr
    assert "--expression is missing" in run(*new, "--id", "bad", code=2).stderr
    assert "--id is missing" in run(*new, "--expression", "t", code=2).stderr
    assert sorted(os.listdir(folder)) == ["my_relu.yaml", "schema.json"]
    assert (folder / "my_relu.yaml").read_text() == before


@pytest.mark.parametrize(
    ("expression", "line"), [("tanh(2*t)", "  closed_form: false"), ("sign(2*t)", "  jumps: true"), ("t*Phi(3*t)", "")]
)
def test_catalog_new_declares_what_it_finds(tmp_path, expression, line):
    result = run("catalog", "new", "--folder", tmp_path, "--id", "mine", "--expression", expression)
    lines = (tmp_path / "mine.yaml").read_text().splitlines()
    assert [x for x in lines if "closed_form" in x or "jumps" in x] == [line] * bool(line)
    assert ("no closed form, it is approximated" in result.output) == ("closed_form" in line)
    assert ("take the NNGP" in result.output) == ("jumps" in line)
    assert run("catalog", "verify", "--folder", tmp_path).output.endswith("1 of 1 entries pass, 0 s\n")


def test_catalog_new_asks(tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "_asks", lambda: True)
    opened = []
    monkeypatch.setattr(entries, "show_page", opened.append)
    answers = "t*Phy(A*t)\nt*Phi(A*t)\nabc\n1/3\nMy GELU\nMy GELU\nrelu\nmine\nAs an example.\n"
    result = run("catalog", "new", "--folder", tmp_path, "--page", tmp_path / "pages", input=answers)
    entry = catalog.load(tmp_path)["mine"]
    for wrong in ("unknown function 'Phy'", "'abc'", "'My GELU'", "the id 'relu' is taken"):  # and asked again
        assert wrong in result.output
    assert "[my_gelu]" in result.output
    assert (entry.title, entry.notes, entry.defaults) == ("My GELU", "As an example.", {"A": Fraction(1, 3)})
    page = tmp_path / "pages" / "mine.html"
    assert opened == [page.as_uri()] and "verified" in page.read_text() and f"its page: {page}" in result.output


# kernel -----------------------------------------------------------------------------------------------------------


def test_network_text():
    layers = read_network(" dense(1.5, .1)  gelu {t * Phi(t)} abrelu(A=0.3,B=-1e0) dense(b_std=2) p(a=[1,2]) ")
    assert layers == [
        ("dense", {"W_std": 1.5, "b_std": 0.1}, (), False),
        ("gelu", {}, (), False),
        ("t * Phi(t)", {}, (), True),
        ("abrelu", {"A": 0.3, "B": -1.0}, (), False),
        ("dense", {"b_std": 2.0}, (), False),
        ("p", {"a": [1.0, 2.0]}, (), False),
    ]
    images = "conv(3, W_std=2, padding=CIRCULAR, strides=[1,2]) residual(relu conv( 3 ) ) layernorm globalavgpool dense"
    conv, residual, *_ = read_network(images)
    assert conv == ("conv", {"window": 3.0, "W_std": 2.0, "padding": "CIRCULAR", "strides": [1.0, 2.0]}, (), False)
    assert residual == ("residual", {}, (("relu", {}, (), False), ("conv", {"window": 3.0}, (), False)), False)
    assert repr(build_network(read_network(images))) == (
        "serial(Conv((3, 3), strides=(1, 2), padding='CIRCULAR', W_std=2.0, b_std=0.0), "
        "Residual(Activation('relu'), Conv((3, 3), strides=(1, 1), padding='SAME', W_std=1.0, b_std=0.0)), "
        "LayerNorm(), GlobalAvgPool(), Dense(W_std=1.0, b_std=0.0))"
    )


@pytest.mark.parametrize(
    "text, column",
    [
        ("", 0), ("  ", 0), ("dense(", 6), ("dense(1.5", 9), ("dense(1,2,3)", 0), ("dense(1,W_std=2)", 0),
        ("dense(x=1)", 0), ("dense gelu(1)", 6), ("dense (1)", 6), ("dense,relu", 5), ("dense{t}", 5), ("dense 3", 6),
        ("dense(1e999)", 6), ("dense(nan)", 9), ("dense(1.2.3)", 6), ("{t", 0), ("}", 0), ("relu(A=1,A=2)", 9),
        ("relu(spec=1)", 5), ("a;b", 1), ("dense(__import__('os'))", 6), ("abs(A=[)", 7), ("abs(A=[1)", 8),
        ("dense\x00", 5), ("dense()", 6), ("relu Dense", 5), ("residual", 8), ("residual()", 9), ("residual(relu", 13),
        ("Conv(3)", 0), ("conv(3,relu=1)", 0), ("conv(3,4)", 0), ("flatten(1)", 0), ("dense)", 5), ("scale(a)", 7),
        ("residual(relu)dense", 14), ("conv(3,padding=3)", 15), ("conv", 0), ("relu scale", 5), ("layernorm()", 0),
        ("conv(padding=SAME)", 0),
    ],
)  # fmt: skip
def test_network_text_errors(text, column):
    with pytest.raises(ValueError) as error:
        read_network(text)
    shown, caret, reason = str(error.value).split("\n")
    assert shown == text and caret == " " * column + "^" and reason


@pytest.fixture
def data(tmp_path):
    X = np.random.default_rng(0).standard_normal((6, 4))
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "Y.npy", X[:3].astype(np.float32))
    return tmp_path


def test_kernel(data):
    """relu twice: against the arc-cosine recursion written out."""
    import jax

    X, out = np.load(data / "X.npy"), data / "K.npy"
    assert "6 x 6, float64" in run("kernel", "dense(1.5,0.1) relu dense", "--data", data / "X.npy", "-o", out).output
    cov = 2.25 * X @ X.T / 4 + 0.01
    root = np.sqrt(np.outer(np.diag(cov), np.diag(cov)))
    angle = np.arccos(np.clip(cov / root, -1, 1))
    k = (root * np.sin(angle) + (np.pi - angle) * cov) / (2 * np.pi)
    assert np.allclose(np.load(out), k + cov * (np.pi - angle) / (2 * np.pi), rtol=1e-7)
    assert jax.config.jax_enable_x64
    K = np.load(out)
    run("kernel", "dense relu dense", "--data", data / "X.npy", "-o", out, code=2)
    assert np.array_equal(np.load(out), K)
    args = ("--data", data / "X.npy", "--data2", data / "Y.npy", "-o", out, "--force", "--json")
    printed = json.loads(run("kernel", "dense(1.5,0.1) relu", "--get", "nngp", *args).output)
    assert printed["shape"] == [6, 3] and np.allclose(np.load(out), k[:, :3], rtol=1e-5)
    run("kernel", "dense sign dense", "--data", data / "X.npy", "-o", out, "--force", code=3)
    run("kernel", "dense nothing dense", "--data", data / "X.npy", "-o", out, "--force", code=2)
    assert sorted(os.listdir(data)) == ["K.npy", "X.npy", "Y.npy"]


def test_kernel_of_images(data):
    images = np.random.default_rng(1).standard_normal((3, 4, 4, 2)).astype(np.float32)
    np.save(data / "I.npy", images)
    run("kernel", "conv(3) relu avgpool(2) flatten dense", "--data", data / "I.npy", "-o", data / "K.npy")
    net = dc.serial(dc.Conv((3, 3)), dc.Activation("relu"), dc.AvgPool((2, 2)), dc.Flatten(), dc.Dense())
    assert np.array_equal(np.load(data / "K.npy"), net(images))
    for text, reason in (
        ("conv(3) relu dense", "append Flatten() or GlobalAvgPool()"),
        ("conv(3000) flatten", "take a smaller one"),
        ("{conv} flatten", "unknown"),
    ):
        assert reason in run("kernel", text, "--data", data / "I.npy", "-o", data / "L.npy", code=2).stderr


def test_kernel_plan(data):
    text = run("kernel", "dense relu dense", "--data", data / "X.npy", "--plan").stdout
    assert "6 x 6 pairs" in text and "time" in text and "flops" in text
    args = ("--data", data / "X.npy", "--data2", data / "Y.npy", "--plan", "-o", data / "K.npy", "--json")
    planned = json.loads(run("kernel", "dense relu dense", *args).stdout)
    assert planned["n"] == 6 and planned["m"] == 3 and planned["output_bytes"] == 8 * 18 and planned["seconds"] > 0
    assert not (data / "K.npy").exists()
    run("kernel", "dense relu dense", "--data", data / "X.npy", code=2)


def test_estimates_for_clusters(data):
    text = ("dense relu dense", "--data", data / "X.npy", "--plan", "--rows", "1000000")
    said = run("kernel", *text, "--workers", "64").stdout
    assert said.startswith("1,000,000 x 1,000,000 pairs, 1 kernel(s) of float64, on 64 workers") and "ridge" in said
    assert json.loads(run("kernel", *text, "--json").stdout)["output_bytes"] == 8 * 10**12
    options = ("--method", "nystrom", "--components", "4", "--workers", "8", "--json")
    assert json.loads(run("features", *text, *options).stdout) | {"count": 10**6, "workers": 8, "columns": 4}
    run("kernel", *text, "--data2", data / "Y.npy", code=2)
    for command in ("kernel", "features"):
        refused = run(command, *text[:3], "--rows", "10", "-o", data / "K.npy", code=2)
        assert "--rows is for --plan" in refused.stderr


@pytest.mark.parametrize("method", ["cholesky", "cg"])
def test_solve(data, method):
    """Of a store and of a file; what does not converge is written, and its exit code is 1."""
    pytest.importorskip("zarr")
    net, options = "dense(1.5,0.1) relu dense", ("--ridge", "0.1", "--targets", data / "X.npy", "--method", method)
    for name in ("K.npy", "K.zarr"):
        run("kernel", net, "--data", data / "X.npy", "-o", data / name)
        out = data / f"{name}.npy"
        said = run("solve", data / name, *options, "-o", out).stdout
        assert said.startswith(f"wrote {out}: 6 x 4 coefficients\nconverged: relative residual ")
    K, Y = np.load(data / "K.npy"), np.load(data / "X.npy")
    assert np.allclose((K + 0.1 * np.eye(6)) @ np.load(data / "K.zarr.npy"), Y, atol=1e-7)
    refused = run("solve", data / "K.npy", *options, "-o", data / "b.npy", "--tol", "0", "--json", code=1)
    assert not json.loads(refused.stdout)["converged"] and f"--guess {data / 'b.npy'}" in refused.stderr
    run("solve", data / "K.npy", *options, "--guess", data / "b.npy", "-o", data / "c.npy")
    np.savez(data / "K.npz", K=K)
    for bad in (
        ("X.npy",),
        ("no.npy",),
        ("K.npz",),
        ("K.zarr", "--get", "nngp"),
        ("K.npy", "--memory", "1e-7", "--method", "cholesky"),
    ):
        run("solve", data / bad[0], *options, *bad[1:], "-o", data / "d.npy", code=2)
    assert not (data / "d.npy").exists()
    refused = run("solve", data / "K.npy", *options, "-o", data / "K.npy", "--force", code=2)
    assert "choose another name" in refused.stderr and np.array_equal(np.load(data / "K.npy"), K)


def test_kernel_without_closed_form(data):
    args = ("kernel", "dense tanh", "--get", "nngp", "--data", data / "X.npy", "--force", "-o", data / "K.npy")
    run(*args, "--tol", "1e-4", "--norms", "0.1", "4")
    assert np.isfinite(np.load(data / "K.npy")).all()
    run(*args, "--tol", "1e-4", "--norms", "3", "4", code=2)


def test_kernel_data(data):
    def saved(value, **kwargs):
        np.save(data / "bad.npy", value, **kwargs)
        return data / "bad.npy"

    out = data / "K.npy"
    (data / "text.npy").write_text("1 2 3")
    (data / "empty.npy").write_bytes(b"")
    np.savez(data / "archive.npy.npz", X=np.ones((2, 2)))
    files = [data / name for name in ("none.npy", "text.npy", "empty.npy", "archive.npy.npz")] + [data]
    for file in files:
        run("kernel", "dense relu", "--data", file, "-o", out, code=2)
    nan = np.full((2, 2), np.nan)
    for value in (np.ones(3), np.ones((0, 3)), np.ones((2, 2), complex), np.array([["a"]]), np.array([[{}]]), nan):
        run("kernel", "dense relu", "--data", saved(value, allow_pickle=True), "-o", out, code=2)
    run("kernel", "dense relu", "--data", saved(np.arange(6).reshape(2, 3)), "-o", out)
    assert np.load(out).dtype == np.float64
