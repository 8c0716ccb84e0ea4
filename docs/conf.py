"""Sphinx builds the site from this folder, without network.

All pages, and the gallery as code without its pictures (what CI builds; warnings are errors)::

    python -m sphinx -W --keep-going -n -D plot_gallery=0 docs docs/_build/html

The whole site, for which every example of the gallery runs::

    python -m sphinx -W --keep-going -n docs docs/_build/html
"""

from __future__ import annotations

import re
from typing import Any

import skgroupvae

project = "skgroupvae"
author = "The skgroupvae developers"
copyright = f"2026, {author}"
version = release = skgroupvae.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates", "gallery/*.ipynb", "gallery/*.py", "gallery/*.zip"]
templates_path = ["_templates"]

myst_heading_anchors = 3
# The configuration of the gallery holds a function, which cannot be kept between builds.
suppress_warnings = ["config.cache"]

autosummary_generate = True
# A page of a module lists what its __all__ lists, wherever that is defined.
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
# There is no inventory of other projects, as fetching one needs the network.
nitpick_ignore_regex = [("py:.*", r"(sklearn|torch|numpy|pandas|matplotlib)\..*")]

html_theme = "pydata_sphinx_theme"
html_title = f"skgroupvae {release}"
html_sourcelink_suffix = ""
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}

sphinx_gallery_conf = {
    "examples_dirs": ["../examples/gallery"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "capture_repr": (),
    "show_signature": False,
    "reset_modules": ("matplotlib",),
    "matplotlib_animations": False,
}


def skip_member(_app: Any, _what: str, name: str, obj: Any, skip: bool, _options: Any) -> bool:
    """Leave out what scikit-learn and torch define: their own pages have it."""
    foreign = (getattr(obj, "__module__", None) or "").startswith(("sklearn.", "torch."))
    return skip or foreign or re.fullmatch(r"set_\w+_request", name) is not None


def escape_stars(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Shapes such as (*, U) are no emphasis."""
    lines[:] = [re.sub(r"(?<=[( ])\*(?=[,)])", r"\\*", line) for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-docstring", escape_stars)
