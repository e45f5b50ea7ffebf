"""A math renderer for Sphinx: LaTeX to MathML while the site is built, so that pages need no script and no font.

`conf.py` names it as `html_math_renderer`. What cannot be converted is a warning, and with `-W` an error.
"""

import re
from html import escape
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)

CHILDREN = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}

# Bars and slashes are operators to a browser, which spaces them apart; capital Greek letters stand upright in LaTeX.
TYPOGRAPHY = (
    (r"<mo[^>]*>(&#x0007C;|&#x02016;)</mo>", r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>'),
    (r"<mo[^>]*>(/|&#x0002F;)</mo>", r'<mo lspace="0.1em" rspace="0.1em">\1</mo>'),
    (r"<mi>(&#x0?0?3[9A][0-9A-F];|[\u0391-\u03a9])</mi>", r'<mi mathvariant="normal">\1</mi>'),
)


def checked(latex: str, display: str) -> str:
    """LaTeX as a <math> element. The converter lets some mistakes pass: ValueError for those."""
    if latex.replace(r"\{", "").count("{") != latex.replace(r"\}", "").count("}"):
        raise ValueError("unbalanced braces")
    found = convert(latex, display=display)
    unknown = re.search(r"\\[A-Za-z]+", found)
    if unknown:
        raise ValueError(f"unknown command {unknown[0]}")
    for element in ElementTree.fromstring(found).iter():
        tag = element.tag.rpartition("}")[2]
        if len(element) != CHILDREN.get(tag, len(element)):
            raise ValueError(f"{tag} of {len(element)} parts")
    for wanted, instead in TYPOGRAPHY:
        found = re.sub(wanted, instead, found)
    return found


def mathml(latex: str, display: str, node: nodes.Node) -> str:
    """LaTeX as a <math> element; its source, escaped, and a warning where that fails."""
    try:
        return checked(latex, display)
    except Exception as error:  # the converter's errors have no class in common
        logger.warning("cannot convert the formula %r: %r", latex, error, location=node)
        return f"<code>{escape(latex)}</code>"


def visit_math(self, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), "inline", node))
    raise nodes.SkipNode


def visit_math_block(self, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})</span>')
    self.body.append(mathml(node.astext().strip(), "block", node) + "</div>\n")
    raise nodes.SkipNode


def setup(app) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
