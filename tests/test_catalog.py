"""The catalog: its records, its errors to the line and column, and that looking something up stays light."""

import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from dualcalc import catalog as cat

ROOT = Path(__file__).resolve().parent.parent
TABLE_1 = (
    "rectified_monomial erf abrelu exp hermite sin gaussian gelu elu normalized_gaussian rbf gabor monomial polynomial"
).split()
NO_CLOSED_FORM = {"tanh", "sigmoid", "silu", "softplus", "mish", "softsign", "tanh_gelu", "quick_gelu"}
OTHERS = set(
    "relu abs leaky_relu sign step cos relu6 hardtanh hard_sigmoid hard_swish softshrink selu celu squared_relu"
    " shifted_relu triangle bump morlet snake t2_erf gelu_slope probit ricker quadratic identity linear_sin"
    " erf_gaussian".split()
)
FIRST = "- id: one\n  names: [One]\n"  # a record begun: its formula comes on line 3


@pytest.fixture(autouse=True)
def _no_extra_folders(monkeypatch):
    monkeypatch.delenv(cat.ENVIRONMENT, raising=False)


def write(folder, text, name="some.yaml"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


# The records ------------------------------------------------------------------------------------------------------


def test_ids():
    catalog = cat.load()
    assert list(catalog)[:14] == TABLE_1
    assert [catalog[id].table1 for id in TABLE_1] == [*range(1, 15)]
    assert set(catalog) >= OTHERS | NO_CLOSED_FORM and len(catalog) >= 40
    assert {id for id, entry in catalog.items() if not entry.closed_form} == NO_CLOSED_FORM
    titles = [name for entry in catalog.values() for name in entry.names]
    assert len(titles) == len(set(titles))


def test_references_resolve_and_are_all_used():
    catalog = cat.load()
    used = {key for e in catalog.values() for role in cat.Sources.model_fields for key in getattr(e.references, role)}
    assert used == set(catalog.references)
    for id in TABLE_1:
        sources = catalog[id].references
        assert sources.nngp and sources.ntk
    assert catalog["erf"].references.ntk == ("lee2019",)
    assert catalog.references["han2022"].arxiv == "2209.04121"


def test_every_record_knows_its_place():
    for entry in cat.load().values():
        assert entry.path.read_text().splitlines()[entry.line - 1] == f"- id: {entry.id}"


def test_expected_values_agree_with_the_recorded_quadrature():
    recorded = json.loads((ROOT / "tests/data/activations.json").read_text())["activations"]
    names = {"rectified_monomial": "rectified_monomial_2", "hermite": "hermite_4", "monomial": "monomial_3"}
    compared = 0
    for id, entry in cat.load().items():
        record = recorded.get(names.get(id, id))
        if not entry.expected or record is None or record["params"]:
            continue
        for row in entry.expected:
            k, kdot = next(r[3:5] for r in record["rows"] if r[:3] == [row.q12, row.q11, row.q22])
            assert row.k == pytest.approx(k, rel=1e-12)
            assert row.kdot == (None if kdot is None else pytest.approx(kdot, rel=1e-12))
            compared += 1
    assert compared >= 12


def test_every_file_names_the_schema_and_the_schema_is_current():
    folder = cat.builtin_folder()
    for path in folder.glob("*.yaml"):
        assert path.read_text().splitlines()[0] == cat.SCHEMA_LINE
    committed = json.loads((folder / "schema.json").read_text())
    assert committed == cat.schema(), "run: python -m dualcalc.catalog > catalog/schema.json"


def test_records_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        cat.get("gelu").id = "other"


# Texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "params", "text", "rest"),
    [
        ("gelu", {}, "t*(1 + erf(t/sqrt(2)))/2", {}),
        ("rectified_monomial", {}, "t**2*Heaviside(t)", {}),
        ("rectified_monomial", {"q": 5}, "t**5*Heaviside(t)", {}),
        ("hermite", {"q": 3.0}, "hermite(3, t)", {}),
        ("abrelu", {}, "-A*Min(t, 0) + B*Max(t, 0)", {}),
        ("abrelu", {"A": 0.3}, "-A*Min(t, 0) + B*Max(t, 0)", {"A": Fraction(3, 10)}),
        ("sin", {"A": "1/3", "B": 2}, "sin(A*t + B)", {"A": Fraction(1, 3), "B": Fraction(2)}),
        ("polynomial", {"a": [1, 0, "-1/3", 0.1]}, "((1) + (-1/3)*t**2 + (1/10)*t**3)", {}),
        ("polynomial", {"a": [0, 2]}, "((2)*t)", {}),
        ("polynomial", {"a": [0]}, "(0)", {}),
    ],
)
def test_text(id, params, text, rest):
    assert cat.get(id).text(**params) == (text, rest)


def test_text_passes_on_what_is_no_number():
    symbol = object()
    assert cat.get("exp").text(A=symbol)[1] == {"A": symbol}


@pytest.mark.parametrize(
    ("id", "params", "message"),
    [
        ("hermite", {"q": -1}, "q of hermite: got -1; expected a non-negative number"),
        ("hermite", {"q": 1.5}, "expected an integer"),
        ("hermite", {"q": 10**6}, "at most 1000"),
        ("hermite", {"q": "4) + f(1"}, "expected a finite number"),
        ("hermite", {"q": True}, "got true"),
        ("hermite", {"n": 3}, "no parameter 'n'; its parameters are q"),
        ("gelu", {"A": 3}, "it has none"),
        ("celu", {"A": 0}, "expected a positive number"),
        ("sin", {"A": float("nan")}, "got nan"),
        ("sin", {"A": "__import__('os')"}, "expected a finite number"),
        ("polynomial", {"a": [1, "x"]}, "got 'x'"),
        ("polynomial", {"a": []}, "expected 1 to 65"),
    ],
)
def test_text_refuses(id, params, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cat.get(id).text(**params)


def test_exact_numbers():
    assert cat.exact(0.1) == Fraction(1, 10) and cat.exact("-1e-3") == Fraction(-1, 1000)
    assert cat.load()["polynomial"].parameters["a"].default == (1, -2, Fraction(1, 2), 0, Fraction(1, 10))
    assert cat.get("gelu_slope").defaults == {"A": Fraction(1702, 1000)}


def test_all_digits_of_a_file_are_kept(tmp_path):
    digits = "1.23456789012345678901234567890"
    write(tmp_path, f"{FIRST}  expression: A*t\n  parameters: {{A: {{default: {digits}}}}}\n")
    assert cat.load(tmp_path)["one"].defaults == {"A": Fraction(digits)}


def test_unknown_id():
    with pytest.raises(cat.UnknownEntry, match="'glu'; did you mean 'gelu'") as caught:
        cat.get("glu")
    assert not isinstance(caught.value, KeyError)


# Errors, to the line and column -----------------------------------------------------------------------------------

FORMULA = FIRST + "  expression: "  # column 15 on line 3
HAZARDS = [  # text, line, column, part of the message
    ("- id: ../../x\n  names: [X]\n  expression: t\n", 1, 7, "entry '../../x', id: got '../../x'; expected"),
    ("- id: Big\n  names: [X]\n  expression: t\n", 1, 7, "match pattern"),
    (f"- id: {'a' * 41}\n  names: [X]\n  expression: t\n", 1, 7, "at most 40 characters"),
    ("- id: pi\n  names: [X]\n  expression: t\n", 1, 7, "choose another id"),
    ("- id: dense\n  names: [X]\n  expression: t\n", 1, 7, "choose another id"),
    ("- id: nul\n  names: [X]\n  expression: t\n", 1, 7, "choose another id"),  # no file of Windows
    (f"{FORMULA}assume*t\n  parameters: {{assume: {{default: 1}}}}\n", 4, 24, "not free as a parameter's name"),
    (f"{FORMULA}A*t\n  parameters: {{A: {{default: 1e999}}}}\n", 4, 29, "at most 1.8e308"),
    ("- id: 12\n  names: [X]\n  expression: t\n", 1, 7, "got 12; expected a valid string; put it in quotes"),
    ("- names: [X]\n  expression: t\n", 1, 3, "got no `id`"),
    ("- id: one\n  names: X\n  expression: t\n", 2, 10, "expected a valid list; write a list"),
    ("- id: one\n  names: []\n  expression: t\n", 2, 10, "at least 1 item"),
    ("- id: one\n  names: [A, 3]\n  expression: t\n", 2, 14, "names.1: got 3; expected a text"),
    ('- id: one\n  names: ["a\\u202eb"]\n  expression: t\n', 2, 11, "printable"),
    (FIRST, 1, 3, "neither `expression` and `kernel`"),
    (f"{FORMULA}t\n  kernel: q12\n", 1, 3, "got both"),
    (f"{FORMULA}t\n  expresion: t\n", 4, 3, "unknown field 'expresion'; expected one of id, names, expression"),
    (f"{FORMULA}t\n  table1: 15\n", 4, 11, "less than or equal to 14"),
    (f"{FORMULA}t\n  closed_form: maybe\n", 4, 16, "got 'maybe'; expected a valid boolean; write true or false"),
    (f"{FORMULA}t\n  parameters: [A]\n", 4, 15, "got a list; expected a valid mapping"),
    (f"{FORMULA}t\n  parameters: {{A: {{default: 1}}}}\n", 4, 19, "does not contain 'A'"),
    (f"{FORMULA}A*t\n  parameters: {{A: {{defualt: 1}}}}\n", 4, 20, "did you mean 'default'"),
    (f"{FORMULA}A*t\n  parameters: {{A: {{default: .nan}}}}\n", 4, 29, "expected a finite number"),
    (f"{FORMULA}A*t\n  parameters: {{A: {{default: -1, positive: true}}}}\n", 4, 29, "expected a positive number"),
    (f"{FORMULA}A*t\n  parameters: {{A: {{default: [1, x]}}}}\n", 4, 33, "got 'x'"),
    (f"{FORMULA}A*t\n  parameters: {{A: {{default: [1, 2]}}}}\n", 4, 19, "only in `polynomial(A, t)`"),
    (f"{FORMULA}t*e-b\n  parameters: {{b c: {{default: 1}}}}\n", 4, 16, "match pattern"),
    (f"{FORMULA}t^2\n", 3, 15, "got the character '^' at position 2 of the formula; write **"),
    (f"{FORMULA}__import__('os')\n", 3, 15, "got the character"),
    (f"{FORMULA}t.real\n", 3, 15, "outside a number"),
    (f"{FORMULA}(t).real\n", 3, 15, "outside a number"),
    (f"{FORMULA}lambda t\n", 3, 15, "unknown name 'lambda'"),
    (f"{FORMULA}tnh(t)\n", 3, 15, "did you mean 'tanh'"),
    (f"{FORMULA}C*t\n", 3, 15, "declare it under `parameters`"),
    (f"{FORMULA}t*1j\n", 3, 15, "unknown name '1j'"),
    (f"{FORMULA}t*(1 + t\n", 3, 15, "breaks off"),
    (f"{FORMULA}{'(' * 240}t{')' * 240}\n", 3, 15, "breaks off"),
    (f"{FORMULA}{'t+' * 300}t\n", 3, 15, "at most 500 characters"),
    (f"{FORMULA}pi\n", 3, 15, "without t"),
    (f"{FIRST}  kernel: q12*t\n", 3, 11, "unknown name 't'"),
    (f"{FORMULA}t\n  expected: [{{q11: x, q12: 0, q22: 1, k: 1}}]\n", 4, 20, "valid number"),
    (f"{FORMULA}t\n  references: {{nngp: [nobody1900]}}\n", 4, 23, "unknown reference 'nobody1900'"),
    (f"{FORMULA}t\n  references: {{nngp: [han2023]}}\n", 4, 23, "did you mean 'han2022'"),
    ("id: one\nnames: [One]\n", 1, 1, "got a mapping; expected a list of entries"),
    ("", 1, 1, "got nothing; expected a list"),
    ("- just text\n", 1, 3, "got 'just text'; expected a valid mapping"),
    ("- [a]\n", 1, 3, "got a list; expected a valid mapping"),
    (f"{FORMULA}!!python/object/apply:os.system [id]\n", 3, 15, "tags are not allowed"),
    (f"{FORMULA}! t\n", 3, 15, "tags are not allowed"),
    ("- &a [x, x]\n- &b [*a, *a]\n", 1, 3, "anchor &a; anchors are not allowed"),
    ("- id: *a\n", 1, 7, "alias *a"),
    (f"{FORMULA}t\n  names: [Two]\n", 4, 3, "got the key 'names' twice"),
    ("- ? [a]\n  : b\n", 1, 5, "as a key; expected a name"),
    ("- 1: b\n", 1, 3, "got 1 as a key"),
    (f"{FORMULA}t\n---\n[]\n", 4, 1, "second document"),
    ("%YAML 1.1\n---\n- id: x\n", 2, 1, "directive"),
    (f"{FORMULA}t\n  notes: [Two\n", 5, 1, "not YAML"),
    (f"{FORMULA}t\n\t- x\n", 4, 1, "not YAML"),
    (f"{FORMULA}@t\n", 3, 15, "not YAML"),
    ("- [[[[[[[[[1]]]]]]]]]\n", 1, 10, "nested deeper"),
    ("[" * 100_000, 1, 1, "too nested"),
    ("[\n" * 100_000, 9, 1, "nested deeper"),
    (b"- id: one\n  names: [\xff]\n", 2, 11, "0xff; save the file as UTF-8"),
    (b"- id: o\0ne\n", 1, 8, "control character U+0000"),
    (b"- id: one\n" * 110_000, 1, 1, "at most 1 MiB"),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), HAZARDS, ids=range(len(HAZARDS)))
def test_hazards(tmp_path, text, line, column, message):
    write(tmp_path, text)
    with pytest.raises(cat.CatalogError) as caught:
        cat.load(tmp_path)
    error = caught.value
    assert message in str(error)
    assert str(error).startswith(f"{tmp_path / 'some.yaml'}:{line}:{column}: ")
    assert (error.path, error.line, error.column) == (str(tmp_path / "some.yaml"), line, column)


def test_several_errors_are_reported_together(tmp_path):
    write(tmp_path, "- id: one\n  names: 3\n  expression: t\n  table1: no\n")
    with pytest.raises(cat.CatalogError) as caught:
        cat.load(tmp_path)
    assert [row.split(" ")[0].rpartition("some.yaml:")[2] for row in str(caught.value).splitlines()] == [
        "2:10:",
        "4:11:",
    ]


def test_not_a_plain_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(cat.CatalogError, match="not a plain file"):
        cat.load(tmp_path)


def test_references_of_a_folder(tmp_path):
    write(tmp_path, f"{FORMULA}t\n  references: {{nngp: [me2024]}}\n")
    good = "me2024: {author: Me, title: Mine, venue: arXiv, year: 2024}\n"
    write(tmp_path, good, "references.yaml")
    assert cat.load(tmp_path).references["me2024"].title == "Mine"
    for text, place, message in [
        (good.replace("2024}", "soon}"), "1:55", "got 'soon'; expected a valid integer"),
        (good + "Bad-Key: {}\n", "2:1", "expected lower-case letters"),
        (good + good.replace("me2024", "han2022"), "2:1", "differs from the one at"),
        ("- me2024: 1\n", "1:1", "expected a mapping of keys"),
    ]:
        write(tmp_path, "[]\n")
        write(tmp_path, text, "references.yaml")
        with pytest.raises(cat.CatalogError, match=rf"references.yaml:{place}: .*{message}"):
            _ = cat.load(tmp_path).references


# Folders ----------------------------------------------------------------------------------------------------------


def test_extra_folders(tmp_path, monkeypatch):
    for name in ("two", "three"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, f"- id: {name}\n  names: [N]\n  expression: t\n")
    monkeypatch.setenv(cat.ENVIRONMENT, f"{tmp_path / 'two'}{os.pathsep}")
    assert cat.get("two").path == tmp_path / "two/some.yaml"
    assert {"two", "three", "gelu"} <= set(cat.load(tmp_path / "three"))
    assert "three" not in cat.load(tmp_path / "two")  # named twice, read once
    write(tmp_path / "three", "- id: short\n  names: [S]\n  expression: t\n", "other.yml")
    assert {"three", "short"} <= set(cat.load(tmp_path / "three"))
    write(tmp_path / "two", "- id: changed\n  names: [N]\n  expression: t\n")
    assert "changed" in cat.load() and "two" not in cat.load()
    monkeypatch.setenv(cat.ENVIRONMENT, str(tmp_path / "four"))
    with pytest.raises(cat.CatalogError, match=r"four: no readable catalog folder \(in \$DUALCALC_CATALOG\)"):
        cat.load()


def test_an_id_taken_twice_names_both_places(tmp_path):
    write(tmp_path, f"{FORMULA}t\n- id: gelu\n  names: [Again]\n  expression: t\n")
    gelu = cat.get("gelu")
    with pytest.raises(cat.CatalogError, match="'gelu' is already taken at") as caught:
        cat.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/some.yaml:4:3: ") and f"{gelu.path}:{gelu.line};" in str(
        caught.value
    )


# Writing ----------------------------------------------------------------------------------------------------------


def test_new_entry(tmp_path):
    folder = tmp_path / "mine"
    with pytest.raises(cat.CatalogError, match="mine: no such folder; create it first"):
        cat.new_entry(folder, "my_act", expression="t")
    folder.mkdir()
    path = cat.new_entry(
        folder, "my_act", expression="t*Phi(A*t)", name='A "quoted": name # é', parameters={"A": "1/3"}
    )
    assert (
        path == folder / "my_act.yaml"
        and path.read_text().splitlines()[0] == cat.SCHEMA_LINE
        and len(path.read_text().splitlines()) == 1 + 5
    )
    entry = cat.load(folder)["my_act"]
    assert entry.title == 'A "quoted": name # é' and entry.defaults == {"A": Fraction(1, 3)}
    cat.new_entry(folder, "my_kernel", kernel="q12**2")
    assert cat.load(folder)["my_kernel"].kernel == "q12**2"
    assert sorted(os.listdir(folder)) == ["my_act.yaml", "my_kernel.yaml", "schema.json"]
    assert json.loads((folder / "schema.json").read_text()) == cat.schema()


@pytest.mark.parametrize(
    ("id", "expression", "message"),
    [
        ("../../x", "t", "expected"),
        ("gelu", "t", "already taken"),
        ("fine", "t^2", "write \\*\\*"),
        ("fine", "t\n  kernel: q12", "character"),
        ("taken", "t", "exists already"),
    ],
)
def test_new_entry_refuses_and_leaves_nothing(tmp_path, id, expression, message):
    write(tmp_path, "[]\n", "taken.yaml")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match=message):
        cat.new_entry(tmp_path, id, expression=expression)
    assert sorted(os.listdir(tmp_path)) == before and (tmp_path / "taken.yaml").read_text() == "[]\n"


@pytest.mark.parametrize("broken", ["link", "fsync"])
def test_new_entry_is_all_or_nothing(tmp_path, monkeypatch, broken):
    def fail(*args):
        raise FileExistsError if broken == "link" else OSError(28, "No space left on device")

    monkeypatch.setattr(cat.os, broken, fail)
    with pytest.raises((cat.CatalogError, OSError)):
        cat.new_entry(tmp_path, "mine", expression="t")
    assert os.listdir(tmp_path) == []


def test_new_entry_without_hard_links(tmp_path, monkeypatch):
    def no_links(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(cat.os, "link", no_links)
    assert cat.load(cat.new_entry(tmp_path, "mine", expression="t").parent)["mine"].expression == "t"
    assert sorted(os.listdir(tmp_path)) == ["mine.yaml", "schema.json"]


# Weight -----------------------------------------------------------------------------------------------------------


def test_a_listing_imports_neither_sympy_nor_jax():
    code = (
        "import sys; from dualcalc import catalog; catalog.load();"
        "print([m for m in ('sympy', 'jax', 'numpy', 'scipy', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_file_imports_neither_sympy_nor_jax():
    assert not re.search(r"^\s*(import|from) (sympy|jax)", Path(cat.__file__).read_text(), re.MULTILINE)
