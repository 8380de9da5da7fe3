"""Sphinx: the pages of this folder, and the reference from the docstrings. ``make docs`` builds."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import featnet  # noqa: E402

project = "featnet"
copyright = "featnet contributors"
version = release = featnet.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "model_table",
    "notebook",
    "public_names",
]
exclude_patterns = ["_ext", "_static"]

# Pages are read on GitHub as well: no syntax beyond Markdown, but where there is no other way.
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False  # "A tensor: ..." is a sentence, not a type
python_display_short_literal_types = True

# What a signature names of other libraries is not linked: the build needs no network.
nitpick_ignore_regex = [
    (r"py:.*", r"(?:torch|numpy|np|PIL|collections|pathlib|typing|os|nn|types)\..*"),
    (r"py:class", r"Image|Dataset"),
]
# Records that public functions hand on to each other, and type variables.
nitpick_ignore = [
    ("py:class", name)
    for name in (
        "Model",
        "featnet.deploy.enginenet.Interface",
        "featnet.deploy.engines.Program",
        "featnet.deploy.optimizing.Model",
        "featnet.deploy.reparam.Model",
        "featnet.extraction.extractors.FeatureNet",
        "featnet.extraction.hooks.Collection",
        "featnet.images.components.LevelBasis",
        "featnet.images.fits.Placement",
        "featnet.layers.heads.Head",
        "featnet.registry.Function",
    )
]

html_theme = "furo"
html_title = f"featnet {version}"
html_static_path = ["_static"]
html_css_files = ["featnet.css"]
html_show_sphinx = False
html_theme_options = {"source_directory": "docs/"}
