"""How the documentation is built: ``tox -e docs``. What the code knows itself is taken from it at build time."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from turnout import __version__

project = "turnout"
author = "the turnout authors"
copyright = "2026, the turnout authors"  # noqa: A001  # Sphinx's name
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "from_the_code"]
source_suffix = {".md": "markdown"}
nitpicky = True
smartquotes = False  # -- begins an option here
# private modules and types of others are named in signatures; their pages are not ours
nitpick_ignore_regex = [
    ("py:.*", r"(pathlib\.|os\.|socket\.|enum\.|collections\.).*"),
    ("py:.*", r"turnout\.(planes|system|state|core\.connection_policy)\..*"),
]

# headings get anchors, so that a link into a page is checked, too
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

autodoc_typehints = "description"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"turnout {__version__}"
html_static_path = ["_static"]
html_css_files = ["turnout.css"]
html_show_sourcelink = False
# Furo's own fonts are the system's; nothing is fetched from another host
html_theme_options = {"navigation_with_keys": True}
