"""What every page is made of: one style, scripts, plotly.js and numbers inside the page, nothing from outside.

A page is readable for years: a Content-Security-Policy in its head forbids the browser to load anything
else. Every text that comes from a run is escaped by the template engine, and in the embedded JSON.
"""

from __future__ import annotations

import importlib.resources
import json
import math
from typing import Any


def asset(name: str) -> str:
    """A file that ships, by its path in the package ("report/page.css")."""
    return (importlib.resources.files("autocomp") / name).read_text(encoding="utf-8")


def render(name: str, data: Any, *, plotly_inline: bool = True, **values: Any) -> str:
    """The page of the template ``<name>.html`` with the script ``<name>.js``.

    Args:
        name: path in the package without the ending ("report/page").
        data: what the script draws; texts that plotly shows must be escaped.
        plotly_inline: False leaves plotly.js (4.8 MB) out; the script then draws nothing.
        **values: for the template.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(asset),
    )
    return environment.get_template(f"{name}.html").render(
        css=Markup(asset("report/page.css")),
        js=Markup(asset("report/charts.js") + asset(f"{name}.js")),
        plotly=Markup(_plotly()) if plotly_inline else "",
        data=Markup(embedded(data)),
        **values,
    )


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def embedded(data: Any) -> str:
    """JSON that is safe inside a script element: no "<", ">" or "&" is left, no NaN."""
    text = json.dumps(finite(data), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def finite(value: Any) -> Any:
    """``value`` with numbers that JSON has no word for as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value
