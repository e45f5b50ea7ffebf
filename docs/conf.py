"""The documentation site: `make docs`. Nothing in it is fetched from a network, at build time or by a reader."""

import shutil
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
# Sphinx reads pages below this folder alone; notebooks and the guide lie where their readers look for them.
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", dirs_exist_ok=True)

project = "dualcalc"
author = "the dualcalc authors"
release = metadata.version("dualcalc")
copyright = "the dualcalc authors, Apache-2.0"

extensions = ["myst_nb", "sphinx.ext.autodoc", "mathml", "docstrings"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are shown as they are kept; `make test-docs` runs them
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}  # they would be fetched
html_math_renderer = "mathml"

exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "dualcalc"
html_static_path = ["_static"]
html_css_files = ["site.css"]
smartquotes = False  # quotes in docstrings are those of code
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"

# Docstrings write code in single backticks; `docstrings.py` reads their other conventions.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
maximum_signature_line_length = 120
add_module_names = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
