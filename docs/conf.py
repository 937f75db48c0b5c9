"""Sphinx configuration; build with ``sphinx-build -W -b html docs docs/_build/html``."""

import sys

import rnla

# A module in all but its file name: autodoc imports by name.
sys.modules["rnla.sketch"] = rnla.sketch

project = "rnla"
author = "rnla developers"
copyright = "2026, rnla developers"
version = release = rnla.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax", "numpydoc", "myst_nb"]
exclude_patterns = ["_build", "jupyter_execute"]

html_theme = "pydata_sphinx_theme"
html_title = "rnla"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}

autosummary_generate = True
numpydoc_show_class_members = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
