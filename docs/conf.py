"""How the documentation is built: `make docs`."""

from opentelemetry_mongo_events import __version__

project = "opentelemetry-mongo-events"
author = "The opentelemetry-mongo-events authors"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
exclude_patterns = ["_build"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

# The types in the signatures are other projects', whose documentation is not asked for.
nitpick_ignore_regex = [("py:.*", r"(?!opentelemetry_mongo_events).*")]
autodoc_member_order = "bysource"
default_role = "code"  # the docstrings mark code with single backticks
