"""Sphinx: these pages, and the docstrings of what is public, as a site (``make docs``)."""

from tutelage import __version__

project = "Tutelage"
version = release = __version__
html_title = "Tutelage"
html_theme = "furo"
html_copy_source = html_show_copyright = False
html_static_path, html_css_files = ["_static"], ["site.css"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
highlight_language = "text"  # of blocks that name none: what is printed, and layouts of folders
myst_heading_anchors = 3  # [...](page.md#heading), as on a forge
nb_execution_mode = "off"  # the notebook has its outputs; a test runs it
napoleon_use_ivar = True  # a list of a class's attributes
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
