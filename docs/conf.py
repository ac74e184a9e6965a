"""Sphinx: `nox -s docs` builds docs/_build/index.html from the docstrings and the pages beside this file."""

project = "girih"
author = "The girih developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "3D medical object detection with pre-training", "page_width": "1100px"}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "imported-members": True}
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.xref_missing"]  # the README links to folders of the repository
