"""The house style of docstrings, read by autodoc: one hook turns it into reStructuredText.

- `code` in single backticks becomes a literal; all other text is text, whatever characters are in it;
- columns, a name and three spaces before what it means, become a list of definitions;
- indented lines are shown as they are.
"""

import re
from collections.abc import Iterator

ROW = re.compile(r"(?P<name>\S(?:.{0,46}?\S)?)(?P<gap> {2,})(?P<text>\S.*)$")
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def inline(text: str) -> str:
    """A line of prose: literals in double backticks, and nothing else is markup."""
    parts = CODE.split(text)
    for i, part in enumerate(parts):
        if i % 2:
            follows = parts[i + 1][:1]
            parts[i] = f"``{part}``" + ("\\ " if follows.isalnum() else "")
        else:
            parts[i] = re.sub(r"([\\*|`]|_(?!\w)|(?<!\w)_)", r"\\\1", part)
    return "".join(parts)


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def restructured(lines: list[str]) -> Iterator[str]:
    i = 0
    while i < len(lines):
        line = lines[i]
        row = ROW.match(line)
        if not line.strip():
            yield ""
            i += 1
        elif indent(line) >= 2:
            yield from ("", "::", "")
            while i < len(lines) and (indent(lines[i]) >= 2 or not lines[i].strip()):
                yield "    " + lines[i] if lines[i].strip() else ""
                i += 1
            yield ""
        elif line.startswith("- "):
            yield from ("", "- " + inline(line[2:]))
            i += 1
            while i < len(lines) and indent(lines[i]) >= 2:
                yield "  " + inline(lines[i].strip())
                i += 1
            yield ""
        elif row and (len(row["gap"]) > 2 or column(lines, i)):
            yield ""
            while i < len(lines) and (row := ROW.match(lines[i])) and not lines[i].startswith("  "):
                yield inline(row["name"]) if "`" in row["name"] else f"``{row['name']}``"
                yield "    " + inline(row["text"])
                i += 1
                while i < len(lines) and indent(lines[i]) >= 2:
                    yield "    " + inline(lines[i].strip())
                    i += 1
            yield ""
        else:
            yield inline(line)
            i += 1


def column(lines: list[str], i: int) -> bool:
    """Whether the next or the last line aligns with the text of row i: two spaces alone may end a sentence."""
    start = ROW.match(lines[i]).start("text")
    near = [line for line in (lines[i - 1 : i] + lines[i + 1 : i + 2]) if len(line) > start]
    return any(line[start - 1] == " " != line[start] for line in near)


def process(app, what, name, obj, options, lines: list[str]) -> None:
    lines[:] = restructured(list(lines))


def signature(app, what, name, obj, options, arguments, returns):
    """Defaults that are made anew for every instance, in a form that Sphinx can read."""
    return arguments and arguments.replace("<factory>", "..."), returns


def skip(app, what, name, obj, skip, options) -> bool | None:
    """Fields of named tuples and data classes are in the table of their class."""
    bare = what in ("class", "module") and not callable(obj) and not isinstance(obj, (property, classmethod))
    return True if bare and not name.startswith("__") else None


def setup(app) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
