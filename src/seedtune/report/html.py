"""Pages from templates, with embedded figures and a PNG of each. A page loads nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..utils.files import write_bytes, write_text
from .figures import Spec, javascript, png, theme

_TEMPLATES = Path(__file__).parent / "templates"


def write(folder: Path, template: str, context: Mapping[str, Any], figures: Mapping[str, Spec], refresh: int) -> Path:
    """`folder/index.html` and a PNG of every figure; returns the page. Text is escaped: models wrote some of it.

    Raises SaveError.
    """
    figures = _plain(figures)
    for name, spec in figures.items():
        write_bytes(folder / f"{name}.png", png(spec))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(
        **context,
        css=Markup((_TEMPLATES / "page.css").read_text()),
        script=Markup((_TEMPLATES / "page.js").read_text()),
        javascript=Markup(javascript()),
        figures={"specs": figures, "themes": {"light": theme(dark=False), "dark": theme(dark=True)}},
        version=version("seedtune"),
        refresh=refresh,
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _plain(value: Any) -> Any:
    """As JSON can hold it: NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
