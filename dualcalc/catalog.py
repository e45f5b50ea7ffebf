"""The catalog of activations and kernels: load, validate, look up and extend `catalog/*.yaml`.

An activation is a record, not Python code. This module turns the YAML files into frozen `Entry` values for `dual`,
`networks` and the command line; it imports neither SymPy nor JAX, so that a listing is instant. Formula texts are
checked for form (characters, names, syntax) and never evaluated: their meaning belongs to `parsing`.

YAML is read from the parser's events in one walk, which knows line and column of every value and admits only plain
data: tags, anchors, aliases, directives and duplicate keys are errors.
"""

import ast
import contextlib
import functools
import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml import events as ev
from ruamel.yaml.error import MarkedYAMLError, YAMLError

ENVIRONMENT = "DUALCALC_CATALOG"
REFERENCES = "references.yaml"
FUNCTIONS = frozenset(
    "exp log sqrt sin cos tan sinh cosh tanh atan sign Abs Max Min Heaviside step erf erfc Phi phi sigmoid softplus"
    " relu Piecewise hermite polynomial".split()
)
CONSTANTS = frozenset({"pi", "e", "True"})
VARIABLES = frozenset({"t", "x", "q11", "q12", "q22"})
FILES = {"references", "schema", "index"}  # beside the entries, in the catalog and on its site
FILES |= {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}  # Windows
RESERVED = frozenset(
    "activation assume certified degree dual eps m norm norms nu order symbolic target tol".split()
)  # keywords of the library's functions: no parameter goes by them
LAYERS = frozenset("dense activation conv avgpool globalavgpool flatten layernorm residual serial".split())
LARGEST = Fraction(sys.float_info.max)  # of a parameter's value
MAX_COEFFICIENTS = 65  # of a polynomial: degree 64 is the highest that has a closed form
MAX_BYTES, MAX_DEPTH, MAX_LINE, MAX_BRACKETS, MAX_TEXT, MAX_INTEGER, MAX_ERRORS = 2**20, 8, 1000, 50, 500, 1000, 10


class CatalogError(ValueError):
    """A catalog file is wrong. The message starts with file:line:column, which are attributes too (1-based)."""

    def __init__(self, message: str, path: str | Path = "", line: int = 0, column: int = 0):
        super().__init__(message)
        self.path, self.line, self.column = str(path), line, column


class UnknownEntry(ValueError):
    """No catalog entry has this id."""


class _Misfit(ValueError):
    """A rule of ours is broken at `loc` below the value being validated."""

    def __init__(self, message: str, *loc: str | int):
        super().__init__(message)
        self.loc = loc


def _did_you_mean(word: object, known: Any) -> str:
    import difflib  # only on the way to an error

    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


HINTS = {"target": "; dc.emit takes a target"}
# Of functions that take parameters too.
KEYWORDS = ("norm", "norms", "tol", "degree", "certified", "symbolic", "assume")


def no_parameter(what: object, name: str, known: Any) -> ValueError:
    """The refusal of a value for a parameter that `what` does not have."""
    has = f"its parameters are {', '.join(known)}" if known else "it has none"
    hint = HINTS.get(name) or _did_you_mean(name, [key for key in (*known, *KEYWORDS) if key != name])
    return ValueError(f"{what} has no parameter {name!r}; {has}{hint}")


# Exact numbers ----------------------------------------------------------------------------------------------------

_NUMBER = r"[-+]?(\d{1,40}/0{0,39}[1-9]\d{0,39}|(\d{1,40}(\.\d{0,40})?|\.\d{1,40})([eE][-+]?\d{1,3})?)"


class _Float(float):
    """A YAML float that remembers its digits, so that 0.1 is 1/10 and thirty digits stay thirty digits."""

    text = ""


def exact(value: Any) -> Fraction:
    """The exact number that an int, a float (its shortest decimal), a Fraction or a text like "1/3" stands for."""
    if isinstance(value, Fraction):
        return value
    if not isinstance(value, bool | bytes | list | tuple | dict) and value is not None:
        text = value.text if isinstance(value, _Float) else str(value).strip()
        if re.fullmatch(_NUMBER, text, re.ASCII) and abs(number := Fraction(text)) <= LARGEST:
            return number
    raise _Misfit(f"got {_shown(value)}; expected a finite number of at most 1.8e308; write 2, 0.25 or the text '1/3'")


def _default(value: Any) -> Fraction | tuple[Fraction, ...]:
    if not isinstance(value, list | tuple):
        return exact(value)
    if not 1 <= len(value) <= MAX_COEFFICIENTS:
        raise _Misfit(f"got {len(value)} coefficients; expected 1 to {MAX_COEFFICIENTS}")
    numbers = []
    for i, item in enumerate(value):
        try:
            numbers.append(exact(item))
        except _Misfit as misfit:
            raise _Misfit(str(misfit), i) from None
    return tuple(numbers)


def _write(number: Fraction) -> str:
    """As formula text: bare only where no neighbouring operator can split it."""
    return str(number) if number.denominator == 1 and number >= 0 else f"({number})"


# Records ----------------------------------------------------------------------------------------------------------


def _line(value: Any) -> str:
    if not isinstance(value, str):
        raise _Misfit(f"got {_shown(value)}; expected a text; put it in quotes")
    value = " ".join(value.split())
    if not value or len(value) > 1000 or not value.isprintable():
        raise _Misfit(f"got {_shown(value)}; expected 1 to 1000 printable characters")
    return value


_NUMBER_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": f"^{_NUMBER}$"}]}
_DEFAULT_SCHEMA = {
    "anyOf": [
        *_NUMBER_SCHEMA["anyOf"],
        {"type": "array", "items": _NUMBER_SCHEMA, "minItems": 1, "maxItems": MAX_COEFFICIENTS},
    ]
}
Line = Annotated[
    str, PlainValidator(_line), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 1000})
]  # one line of text; runs of white space are one blank
Default = Annotated[
    Fraction | tuple[Fraction, ...],
    PlainValidator(_default),
    PlainSerializer(lambda v: [str(a) for a in v] if isinstance(v, tuple) else str(v)),
    WithJsonSchema(_DEFAULT_SCHEMA),
]
Id = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
Key = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*$", max_length=40)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=40)]
Flag = Annotated[bool, Field(strict=True)]
Formula = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameter(_Record):
    """A named number of a formula, or the coefficient list of `polynomial(a, t)`."""

    default: Default = Field(description='A number, an exact number as text ("1/3"), or a list of coefficients')
    positive: Flag = False
    nonnegative: Flag = False
    integer: Flag = Field(default=False, description="Shapes the formula (a degree): written into its text")
    description: Line | None = None

    @property
    def is_list(self) -> bool:
        return isinstance(self.default, tuple)

    def check(self, value: Fraction) -> Fraction:
        for broken, wanted in (
            (self.positive and value <= 0, "a positive number"),
            (self.nonnegative and value < 0, "a non-negative number"),
            (self.integer and value.denominator != 1, "an integer"),
            (self.integer and abs(value) > MAX_INTEGER, f"an integer of at most {MAX_INTEGER}"),
        ):
            if broken:
                raise _Misfit(f"got {value}; expected {wanted}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Parameter":
        if isinstance(self.default, tuple):
            if self.positive or self.nonnegative or self.integer:
                raise _Misfit("a coefficient list is not positive, nonnegative or integer; remove that", "default")
            return self
        try:
            self.check(self.default)
        except _Misfit as misfit:
            raise _Misfit(str(misfit), "default") from None
        return self


class Sources(_Record):
    """Keys into references.yaml."""

    activation: tuple[Key, ...] = Field(default=(), description="Where the activation was introduced or made known")
    nngp: tuple[Key, ...] = Field(default=(), description="Where k is derived")
    ntk: tuple[Key, ...] = Field(default=(), description="Where kdot is derived")


class Expected(_Record):
    """Test data at the default parameters; never an implementation. No kdot where it is infinite or unknown."""

    q11: float = Field(ge=0)
    q12: float
    q22: float = Field(ge=0)
    k: float
    kdot: float | None = None


class Reference(_Record):
    """A publication."""

    author: Line
    title: Line
    venue: Line
    year: int = Field(strict=True, ge=1600, le=2200)
    doi: Annotated[str, Field(pattern=r"^10\.\d{4,9}/[!-~]+$")] | None = None
    arxiv: Annotated[str, Field(pattern=r"^(\d{4}\.\d{4,5}|[a-z-]+/\d{7})$")] | None = None


class Entry(_Record):
    """One activation (`expression`, in t) or one bare dual (`kernel`, in q11, q12, q22)."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["expression"]}, {"required": ["kernel"]}]})

    id: Id = Field(description="Permanent and unique over all files")
    names: tuple[Line, ...] = Field(min_length=1, description="Display names; the first is the title")
    expression: Formula | None = None
    kernel: Formula | None = None
    parameters: dict[Name, Parameter] = {}
    table1: int | None = Field(default=None, strict=True, ge=1, le=14, description="Row of the paper's Table 1")
    references: Sources = Sources()
    closed_form: Flag = Field(default=True, description="False: not in the class that has a closed-form dual")
    jumps: Flag = Field(default=False, description="True: the activation jumps, so kdot has no value")
    notes: Line | None = None
    expected: tuple[Expected, ...] = ()
    _where: tuple[str, int, int] = PrivateAttr(default=("", 0, 0))

    @property
    def title(self) -> str:
        return self.names[0]

    @property
    def formula(self) -> str:
        """The text as the file has it."""
        return self.expression or self.kernel or ""

    @property
    def path(self) -> Path:
        return Path(self._where[0])

    @property
    def line(self) -> int:
        return self._where[1]

    @property
    def column(self) -> int:
        return self._where[2]

    @property
    def defaults(self) -> dict[str, Fraction]:
        """Default values of the parameters that stay names in the text."""
        items = self.parameters.items()
        return {name: p.default for name, p in items if isinstance(p.default, Fraction) and not p.integer}

    def text(self, **params: Any) -> tuple[str, dict[str, Any]]:
        """The formula with its integers and its coefficient list written out, and the given real parameters, exact.

        A degree or a coefficient list that is not given takes its default; a real one that is not given stays a
        symbol. A real parameter that is no Python number or exact text (an array, a symbol) is passed on as it is.
        """
        for name in params:
            if name not in self.parameters:
                raise no_parameter(self.id, name, self.parameters)
        text, rest = self.formula, {}
        for name, parameter in self.parameters.items():
            try:
                if parameter.is_list:
                    terms = _polynomial(_default(params.get(name, parameter.default)))
                    text = re.sub(rf"\bpolynomial\(\s*{name}\s*,\s*t\s*\)", f"({terms})", text)
                elif parameter.integer:
                    number = parameter.check(exact(params.get(name, parameter.default)))
                    text = re.sub(rf"\b{name}\b", _write(number), text)
                elif name in params:
                    value = params[name]
                    number_like = isinstance(value, int | float | str | Fraction)
                    rest[name] = parameter.check(exact(value)) if number_like else value
            except _Misfit as misfit:
                raise ValueError(f"parameter {name} of {self.id}: {misfit}") from None
        return text, rest

    @model_validator(mode="after")
    def _consistent(self) -> "Entry":
        if self.id in VARIABLES | CONSTANTS | LAYERS | FILES:
            raise _Misfit(
                f"{self.id!r} has a meaning of its own in formulas, networks or files; choose another id", "id"
            )
        if (self.expression is None) == (self.kernel is None):
            got = "neither" if self.expression is None else "both"
            raise _Misfit(f"got {got} `expression` and `kernel`; expected exactly one; write one of them")
        field = "expression" if self.kernel is None else "kernel"
        for name, parameter in self.parameters.items():
            if name in FUNCTIONS | CONSTANTS | VARIABLES | RESERVED:
                raise _Misfit(f"{name!r} is not free as a parameter's name; choose another", "parameters", name)
            if parameter.is_list and not re.search(rf"\bpolynomial\(\s*{name}\s*,\s*t\s*\)", self.formula):
                raise _Misfit(
                    f"{name!r} is a coefficient list; it can stand only in `polynomial({name}, t)`", "parameters", name
                )
        try:
            _check_formula(self.formula, ("t",) if self.kernel is None else ("q11", "q12", "q22"), self.parameters)
        except _Misfit as misfit:
            raise _Misfit(str(misfit), *(misfit.loc or (field,))) from None
        return self


def _polynomial(coefficients: Fraction | tuple[Fraction, ...]) -> str:
    numbers = coefficients if isinstance(coefficients, tuple) else (coefficients,)
    powers = ("", "*t", *(f"*t**{j}" for j in range(2, len(numbers))))
    return " + ".join(f"({a}){power}" for a, power in zip(numbers, powers, strict=False) if a) or "0"


def _check_formula(text: str, variables: tuple[str, ...], parameters: Mapping[str, Parameter]) -> None:
    """Form only: characters, names and Python's expression grammar (parsed, never run)."""
    if bad := re.search(r"[^A-Za-z0-9_+\-*/().,<>=! ]", text):
        hint = "; write ** for a power" if bad[0] == "^" else "; expected names, numbers and + - * / ** ( ) , < > ="
        raise _Misfit(f"got the character {bad[0]!r} at position {bad.start() + 1} of the formula{hint}")
    bare = re.sub(r"(?<![\w.])(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?(?![\w.])", "0", text)
    if "." in bare:
        raise _Misfit("got a '.' outside a number; expected numbers such as 0.5; attributes do not exist here")
    names = dict.fromkeys(re.findall(r"(?!0\b)\w+", bare))
    allowed = FUNCTIONS | CONSTANTS | {*variables} | {*parameters}
    for name in names:
        if name not in allowed and not name.isdigit():
            hint = _did_you_mean(name, allowed) or "; if it is a parameter, declare it under `parameters`"
            raise _Misfit(
                f"got the unknown name {name!r} in the formula; expected {', '.join(variables)} or a function{hint}"
            )
    try:
        ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        at = f" at position {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise _Misfit(f"the formula breaks off{at}: {getattr(error, 'msg', 'too deep')}; correct the text") from None
    needed = "q12" if "q12" in variables else "t"
    if needed not in names:
        raise _Misfit(f"got a formula without {needed}; expected a function of {', '.join(variables)}")
    for name in parameters:
        if name not in names:
            raise _Misfit(f"the formula does not contain {name!r}; use it or remove it", "parameters", name)


# YAML -------------------------------------------------------------------------------------------------------------

Marks = dict[tuple[str | int, ...], tuple[int, int]]
_PLAIN = (
    (re.compile(r"~|null|Null|NULL|"), lambda text: None),
    (re.compile(r"true|True|TRUE"), lambda text: True),
    (re.compile(r"false|False|FALSE"), lambda text: False),
    (re.compile(r"[-+]?[0-9]{1,40}"), int),
)
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,3})?")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _fail(path: str | Path, line: int, column: int, what: str) -> NoReturn:
    raise CatalogError(f"{path}:{line}:{column}: {what}", path, line, column)


def _read(path: Path) -> str:
    """The file's text, if it is small, regular, UTF-8 and printable."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            _fail(path, 1, 1, "got something that is not a plain file; remove it from the catalog folder")
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        _fail(path, 1, 1, f"got more than {MAX_BYTES} bytes; expected at most 1 MiB; split the file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        head = raw[: error.start].decode("utf-8-sig")
        column = len(head) - head.rfind("\n")
        _fail(path, head.count("\n") + 1, column, f"got the byte 0x{raw[error.start]:02x}; save the file as UTF-8")
    if bad := _UNPRINTABLE.search(text):
        line, column = text.count("\n", 0, bad.start()) + 1, bad.start() - text.rfind("\n", 0, bad.start())
        _fail(path, line, column, f"got the control character U+{ord(bad[0]):04X}; remove it")
    for line, row in enumerate(text.split("\n"), 1):
        # One long line of brackets costs the YAML scanner quadratic time, before it reports any depth.
        if len(row) > MAX_LINE or row.count("[") + row.count("{") > MAX_BRACKETS:
            limit = f"at most {MAX_LINE} characters and {MAX_BRACKETS} opening brackets"
            _fail(path, line, 1, f"got a line too long or too nested; expected {limit}; break it")
    return text


def _scalar(event: Any) -> Any:
    """Quoted: text. Plain: YAML 1.2's core types, without octal, hexadecimal, infinity and dates (these stay text)."""
    text = event.value
    if event.style:
        return text
    for pattern, build in _PLAIN:
        if pattern.fullmatch(text):
            return build(text)
    if _FLOAT.fullmatch(text):
        number = _Float(text)
        number.text = text
        return number
    return text


def _compose(path: str | Path, text: str) -> tuple[Any, Marks]:
    """Plain data, and the 1-based line and column of every value; a key's own mark stands at loc + ("[key]",)."""
    root: Any = None
    marks: Marks = {}
    stack: list[tuple[Any, tuple[str | int, ...]]] = []
    key: list[str | None] = []  # the key that waits for its value, one slot per open collection
    documents = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, ev.DocumentStartEvent):
            documents += 1
            if documents > 1 or event.version or event.tags:
                _fail(path, line, column, "got a second document or a directive; expected one plain YAML document")
        elif isinstance(event, ev.SequenceEndEvent | ev.MappingEndEvent):
            stack.pop()
            key.pop()
        elif isinstance(event, ev.NodeEvent):
            if event.anchor is not None:
                mark = "alias *" if isinstance(event, ev.AliasEvent) else "anchor &"
                _fail(path, line, column, f"got the {mark}{event.anchor}; anchors are not allowed; repeat the value")
            if event.tag is not None:  # type: ignore[attr-defined]
                _fail(path, line, column, f"got the tag {event.tag}; tags are not allowed; remove it")  # type: ignore[attr-defined]
            is_scalar = isinstance(event, ev.ScalarEvent)
            value = _scalar(event) if is_scalar else [] if isinstance(event, ev.SequenceStartEvent) else {}
            loc: tuple[str | int, ...] = ()
            if stack:
                parent, above = stack[-1]
                if isinstance(parent, list):
                    loc = (*above, len(parent))
                    parent.append(value)
                elif key[-1] is None:  # a key
                    if not is_scalar or not isinstance(value, str):
                        _fail(path, line, column, f"got {_shown(value)} as a key; expected a name; quote it")
                    if value in parent:
                        _fail(path, line, column, f"got the key {value!r} twice; remove one")
                    key[-1] = value
                    marks[(*above, value, "[key]")] = line, column
                    continue
                else:
                    loc = (*above, key[-1])
                    parent[key[-1]] = value
                    key[-1] = None
            else:
                root = value
            marks[loc] = line, column
            if not is_scalar:
                if len(stack) == MAX_DEPTH:
                    _fail(path, line, column, f"nested deeper than {MAX_DEPTH}; a catalog file is flat")
                stack.append((value, loc))
                key.append(None)
    return root, marks


def _parse(path: str | Path, text: str) -> tuple[Any, Marks]:
    try:
        return _compose(path, text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        _fail(path, mark.line + 1 if mark else 1, mark.column + 1 if mark else 1, f"not YAML: {what}; correct it")
    except (YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, CatalogError):
            raise
        _fail(path, 1, 1, f"not YAML: {' '.join(str(error).split())}; correct it")


# Messages ---------------------------------------------------------------------------------------------------------

_KINDS = {dict: "a mapping", list: "a list", type(None): "nothing", bool: "true or false"}
_REMEDIES = {
    "string_type": "put it in quotes",
    "tuple_type": "write a list: [one, two]",
    "dict_type": "write a mapping: {name: value}",
    "model_type": "write a mapping: {name: value}",
    "string_pattern_mismatch": "use only what this field allows",
    "bool_type": "write true or false",
    "too_short": "add one",
}


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if type(value) in _KINDS:
        return _KINDS[type(value)]
    text = value.text if isinstance(value, _Float) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fields(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """The fields of the record in which `loc` ends."""
    inner: dict[Any, type[BaseModel]] = {"parameters": Parameter, "references": Sources, "expected": Expected}
    return list((inner[loc[0]] if len(loc) > 1 else model).model_fields)


def _explain(error: Any, model: type[BaseModel]) -> tuple[tuple[str | int, ...], str]:
    """One pydantic error as (loc, what came, what was expected, what to do)."""
    loc, kind, value = error["loc"], error["type"], error["input"]
    if kind == "missing":
        return loc[:-1], f"got no `{loc[-1]}`; expected it in every record; add it"
    if kind == "extra_forbidden":
        fields = _fields(model, loc)
        hint = _did_you_mean(loc[-1], fields) or "; remove it"
        return (*loc, "[key]"), f"got the unknown field {loc[-1]!r}; expected one of {', '.join(fields)}{hint}"
    if kind == "value_error":
        misfit = error["ctx"]["error"]
        return (*loc, *getattr(misfit, "loc", ())), str(misfit)
    wanted = re.sub(r"^(Input|String|Tuple|Value) should ", "expected to ", error["msg"]).replace("to be ", "")
    wanted = wanted.replace("dictionary or instance of", "mapping for").replace("tuple", "list")
    wanted = wanted.replace("dictionary", "mapping")
    return loc, f"got {_shown(value)}; {wanted}; {_REMEDIES.get(kind, 'correct the value')}"


def _validate(model: Any, value: Any, path: str | Path, marks: Marks, base: tuple[str | int, ...]) -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found: dict[tuple[int, int], str] = {}  # the first message at each place: members of a union repeat themselves
        errors = error.errors(include_url=False)
        for item in sorted(errors, key=lambda e: e["type"] != "extra_forbidden"):  # a misspelt field explains a missing
            loc, what = _explain(item, model)
            at: tuple[str | int, ...] = base
            for step in loc:  # pydantic puts names of union members and validators between ours
                if (*at, step) in marks:
                    at = (*at, step)
            if (*at, "[key]") in marks and "[key]" in loc:
                at = (*at, "[key]")
            label = value.get("id") if isinstance(value, dict) and model is Entry else None
            parts = (f"entry {label!r}" if label else "", ".".join(str(s) for s in at[len(base) :] if s != "[key]"))
            prefix = ", ".join(part for part in parts if part)
            found.setdefault(marks[at], f"{prefix}: {what}" if prefix else what)
        lines = [f"{path}:{line}:{column}: {what}" for (line, column), what in list(found.items())[:MAX_ERRORS]]
        raise CatalogError("\n".join(lines), path, *next(iter(found))) from None


# Folders ----------------------------------------------------------------------------------------------------------

Place = tuple[str, int, int]  # path, line, column
Stamp = tuple[tuple[str, int, int], ...]  # name, time in ns and size of every file


class _Folder(NamedTuple):
    entries: list[Entry]
    cited: list[tuple[Place, str]]
    cites: frozenset[str]  # the keys that its references.yaml offers


def _parse_entries(path: str | Path, text: str) -> tuple[list[Entry], list[tuple[Place, str]]]:
    data, marks = _parse(path, text)
    if not isinstance(data, list):
        where = marks.get((), (1, 1))
        _fail(path, *where, f"got {_shown(data)}; expected a list of entries; begin each entry with `- id: name`")
    entries, cited = [], []
    for i, item in enumerate(data):
        entry = _validate(Entry, item, path, marks, (i,))
        entry._where = (str(path), *marks[(i,)])
        entries.append(entry)
        for role in Sources.model_fields:
            for j, key in enumerate(getattr(entry.references, role)):
                cited.append(((str(path), *marks[(i, "references", role, j)]), key))
    return entries, cited


@functools.lru_cache(maxsize=64)
def _read_folder(folder: str, stamp: Stamp) -> _Folder:
    entries: list[Entry] = []
    cited: list[tuple[Place, str]] = []
    cites: list[str] = []
    for name, _, _ in stamp:
        path = Path(folder, name)
        text = _read(path)
        if name == REFERENCES:  # its records are parsed when asked for: a listing shows none
            cites = re.findall(r"^([a-z][a-z0-9]*):", text, re.MULTILINE)
        else:
            more, keys = _parse_entries(path, text)
            entries += more
            cited += keys
    return _Folder(entries, cited, frozenset(cites))


@functools.lru_cache(maxsize=64)
def _read_references(folder: str, stamp: Stamp) -> dict[str, tuple[Reference, Place]]:
    if REFERENCES not in [name for name, _, _ in stamp]:
        return {}
    path = Path(folder, REFERENCES)
    data, marks = _parse(path, _read(path))
    if not isinstance(data, dict):
        where = marks.get((), (1, 1))
        _fail(path, *where, f"got {_shown(data)}; expected a mapping of keys to references; write `key: {{...}}`")
    references = {}
    for key, value in data.items():
        place = (str(path), *marks[(key, "[key]")])
        if not re.fullmatch(r"[a-z][a-z0-9]{0,39}", key):
            _fail(*place, f"got the key {key!r}; expected lower-case letters and digits, as in han2022")
        references[key] = _validate(Reference, value, path, marks, (key,)), place
    return references


def builtin_folder() -> Path:
    """The catalog inside the wheel, or the one beside the package in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "catalog_data", here.parent / "catalog"):
        if folder.is_dir():
            return folder
    raise CatalogError(f"{here}: the built-in catalog is missing; reinstall dualcalc", here)


def _stamp(folder: Path) -> Stamp:
    """The key of the cache: an edited folder is read again."""
    with os.scandir(folder) as items:
        files = [item for item in items if item.name.endswith((".yaml", ".yml")) and not item.name.startswith(".")]
        return tuple(sorted((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in files))


class Catalog(Mapping[str, Entry]):
    """Entries by id: Table 1 in the paper's order, then the others by id."""

    def __init__(self, entries: list[Entry], folders: list[tuple[str, Stamp]]):
        self._entries = {entry.id: entry for entry in sorted(entries, key=lambda e: (e.table1 or 99, e.id))}
        self._folders = folders

    def __getitem__(self, id: str) -> Entry:
        return self._entries[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, id: str) -> Entry:
        """The entry, or `UnknownEntry` with the nearest id."""
        if id in self._entries:
            return self._entries[id]
        hint = (
            _did_you_mean(str(id)[:60], self._entries)
            or "; `dualcalc catalog list` shows all, --catalog DIR or $DUALCALC_CATALOG adds a folder"
        )
        raise UnknownEntry(f"no catalog entry has the id {_shown(id)}{hint}")

    @functools.cached_property
    def references(self) -> dict[str, Reference]:
        """The publications by key."""
        found: dict[str, tuple[Reference, Place]] = {}
        for folder in self._folders:
            for key, (reference, place) in _read_references(*folder).items():
                first = found.setdefault(key, (reference, place))
                if first[0] != reference:
                    other = f"{first[1][0]}:{first[1][1]}"
                    _fail(*place, f"the reference {key!r} differs from the one at {other}; choose another key")
        return {key: reference for key, (reference, _) in found.items()}


def load(*folders: str | Path) -> Catalog:
    """The built-in catalog, with the folders of $DUALCALC_CATALOG and those given here added."""
    named = [
        (Path(name), f" (in ${ENVIRONMENT})") for name in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if name
    ]
    unique: dict[Path, str] = {}
    for path, origin in [(builtin_folder(), ""), *named, *((Path(folder), "") for folder in folders)]:
        unique.setdefault(path.resolve(), origin)
    entries: dict[str, Entry] = {}
    cited: list[tuple[Place, str]] = []
    cites: set[str] = set()
    stamps = []
    for path, origin in unique.items():
        try:
            stamps.append((str(path), _stamp(path)))
            found = _read_folder(*stamps[-1])
        except OSError as error:
            what = f"{path}: no readable catalog folder{origin}: {error.strerror}; correct the path"
            raise CatalogError(what, path) from None
        for entry in found.entries:
            if other := entries.get(entry.id):
                what = f"the id {entry.id!r} is already taken at {other.path}:{other.line}; choose another"
                _fail(entry.path, entry.line, entry.column, what)
            entries[entry.id] = entry
        cited += found.cited
        cites |= found.cites
    for place, key in cited:
        if key not in cites:
            hint = _did_you_mean(key, cites) or f"; add it to {REFERENCES}"
            _fail(*place, f"got the unknown reference {key!r}{hint}")
    return Catalog(list(entries.values()), stamps)


def get(id: str) -> Entry:
    """The entry of the catalog with this id; `UnknownEntry` (a ValueError) with a suggestion otherwise."""
    return load().entry(id)


class Draft(NamedTuple):
    """An entry that is in no file yet, and the text that its file would have."""

    entry: Entry
    text: str


def draft(
    id: str,
    *,
    expression: str | None = None,
    kernel: str | None = None,
    name: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    notes: str | None = None,
    closed_form: bool = True,
    jumps: bool = False,
) -> Draft:
    """Five lines of YAML, validated as a file would be; `parameters` maps names to default values. An expression in x
    is written in t; without notes there is a line that asks for them.

    closed_form, jumps   as in the catalog: a line more where they are not as usual
    """
    if expression is not None and not re.search(r"\bt\b", expression) and "x" not in (parameters or {}):
        expression = re.sub(r"\bx\b", "t", expression)
    fields = {"expression": expression, "kernel": kernel}
    declared = {key: {"default": _plain(value)} for key, value in (parameters or {}).items()}
    for key in re.findall(r"(?:\bhermite\(\s*|\*\*\s*)([A-Za-z]\w*)\b", expression or ""):  # degrees
        if key in declared and re.fullmatch(r"\d+", str(declared[key]["default"])):
            declared[key]["integer"] = True
    rows = [
        f"- id: {json.dumps(id, ensure_ascii=False)}",
        f"  names: {json.dumps([name or id], ensure_ascii=False)}",
        *(f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items() if value is not None),
        f"  parameters: {json.dumps(declared, ensure_ascii=False)}",
        *([] if closed_form else ["  closed_form: false"]),
        *(["  jumps: true"] if jumps else []),
        f"  notes: {json.dumps(notes, ensure_ascii=False)}"
        if notes
        else "  # notes: what it is used for, where it is from",
    ]
    text = "\n".join(rows) + "\n"
    try:
        ((entry,), _) = _parse_entries("new entry", text)
    except CatalogError as error:  # there is no file yet, whose lines one could look up
        raise CatalogError(str(error).partition(": ")[2]) from None
    return Draft(entry, text)


def new_entry(folder: str | Path, id: str, **fields: Any) -> Path:
    """Write the entry that `draft` makes of these fields as `folder/id.yaml`, and return its path.

    The file appears under its name complete or not at all. An existing file or id is never replaced. The schema for
    editors is put beside it, where it is not there yet.
    """
    folder = Path(folder)
    text = draft(id, **fields).text  # from here on `id` is a plain word, fit to be a file's name
    known = load(folder) if folder.is_dir() else load()
    if id in known:
        other = known[id]
        raise CatalogError(f"the id {id!r} is already taken at {other.path}:{other.line}; choose another", other.path)
    if not folder.is_dir():
        raise CatalogError(f"{folder}: no such folder; create it first", folder)
    path = folder / f"{id}.yaml"
    _create(path, f"{SCHEMA_LINE}\n{text}")
    with contextlib.suppress(CatalogError, OSError):  # it is there; an entry is one without it
        _create(folder / SCHEMA, json.dumps(schema(), indent=1) + "\n")
    return path


def _create(path: Path, text: str) -> None:
    """A file that must be new, complete or not at all."""
    temporary = path.parent / f".{path.name}.{os.urandom(6).hex()}.tmp"
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if os.path.lexists(path):
            raise FileExistsError
        try:
            os.link(temporary, path)  # unlike a rename, fails if someone else was faster
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):  # a file system without hard links
            os.replace(temporary, path)
    except FileExistsError:
        raise CatalogError(f"{path} exists already; choose another id or remove the file", path) from None
    finally:
        temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """A number or a list of numbers as JSON can hold it, without loss."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, int | float | str) else str(value)


SCHEMA = "schema.json"
SCHEMA_LINE = f"# yaml-language-server: $schema=./{SCHEMA}"


def schema() -> dict[str, Any]:
    """The JSON schema of the catalog's files, for editors: a list of entries, or the references."""
    from pydantic import TypeAdapter  # not needed for a listing

    adapter: TypeAdapter[Any] = TypeAdapter(list[Entry] | dict[Key, Reference])
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "dualcalc catalog"}
    return head | adapter.json_schema()


if __name__ == "__main__":  # python -m dualcalc.catalog > catalog/schema.json
    print(json.dumps(schema(), indent=1))
