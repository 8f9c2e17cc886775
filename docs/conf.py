"""Sphinx configuration. docs/build.py writes the pages that Sphinx reads; see there."""
import configparser
import importlib.metadata
import re
import shutil
from pathlib import Path

HERE = Path(__file__).resolve().parent
settings = configparser.ConfigParser(delimiters=["="])
settings.read(HERE.parent / "settings.ini", encoding="utf-8")

project = "EmailTRM"
author = settings["DEFAULT"]["author"]
copyright = f"{author}, {settings['DEFAULT']['license']}"
release = version = settings["DEFAULT"]["version"]

extensions = ["myst_nb"]
nb_execution_mode = "off"  # outputs are the ones saved in the notebooks, where the tests made them
nb_render_markdown_format = "myst"  # tables in markdown outputs
nb_ipywidgets_js = {}  # the default loads scripts from a CDN
nb_code_prompt_show = "Source"
nb_code_prompt_hide = "Hide source"
nb_number_source_lines = False
highlight_language = "none"  # a block that names no language is a drawing or a listing, not Python
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "html_image", "attrs_inline"]
myst_dmath_double_inline = True
myst_links_external_new_tab = False
suppress_warnings: list[str] = []

html_theme = "sphinx_book_theme"
html_title = "EmailTRM"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_favicon = "_static/favicon.svg"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_last_updated_fmt = None
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"text": "EmailTRM"},
    "show_navbar_depth": 1,
    "max_navbar_depth": 3,
    "show_toc_level": 2,
    "toc_title": "On this page",
    "home_page_in_toc": False,
    "use_download_button": False,
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],  # the side bar has the search field
    "use_fullscreen_button": False,
    "pygments_light_style": "github-light",
    "pygments_dark_style": "github-dark",
}

# MathJax comes from the registry package sphinx-mathjax-offline: one file, loaded only by pages that hold formulas.
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "local"}}


def copy_mathjax(app, exception) -> None:
    """Put MathJax beside the pages, if any page wants it."""
    if exception or app.builder.name != "html":
        return
    wants = any(mathjax_path in page.read_text(encoding="utf-8") for page in Path(app.outdir).rglob("*.html"))
    target = Path(app.outdir) / "_static" / mathjax_path
    if wants and not target.exists():
        files = importlib.metadata.files("sphinx-mathjax-offline") or []
        source = next(f for f in files if f.as_posix().endswith("static/mathjax/tex-svg.js"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(source.locate()), target)


def accessible(app, pagename, templatename, context, doctree) -> None:
    """Say of each table heading whether it stands over a column or before a row, and let the keyboard reach long formulas."""
    head, rest = re.compile(r"<thead.*?</thead>", re.DOTALL), re.compile(r"<th(?=[\s>])(?![^>]*\bscope=)")
    body = head.sub(lambda m: rest.sub('<th scope="col"', m[0]), context.get("body", ""))
    context["body"] = rest.sub('<th scope="row"', body).replace('<div class="math ', '<div tabindex="0" class="math ')


def setup(app) -> None:
    """Sphinx calls this."""
    app.connect("html-page-context", accessible)
    app.connect("build-finished", copy_mathjax)
