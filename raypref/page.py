"""What the HTML pages share: their template (page.html.j2), figures, durations, and plots as inline SVG.

A page is one file that follows the reader's light or dark colours. Its template escapes every text, and its content
policy forbids scripts and any request to the network.
"""

import hashlib
import io
import math
import re
from collections.abc import Callable

import jinja2
import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

DASH = "–"
INK = "#010203"  # drawn by Matplotlib, then replaced by currentColor so that plots follow the page's light or dark text
BLUE, ORANGE, GREEN, PURPLE, GREY = "#3b82f6", "#f0801a", "#12a574", "#9467d8", "#8a8f98"


def fill(template: str, values: dict, *filters: Callable) -> str:
    """The page of a template of this package."""
    loader = jinja2.PackageLoader(__package__, "")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {f.__name__: f for f in (number, fixed, thousands, duration, *filters)}
    return environment.get_template(template).render(values)


def finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def number(value: float | None, digits: int = 4) -> str:
    """A few significant figures, or a dash for None and NaN."""
    return thousands(value) if not finite(value) or abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def decimals(values: list[float]) -> int:
    """Four significant figures of the largest value."""
    largest = max(map(abs, values), default=0)
    return min(max(3 - math.floor(math.log10(largest)), 0), 6) if largest else 0


def fixed(value: float | None, digits: int) -> str:
    """With so many decimals, as the other figures of its column, or a dash."""
    return f"{value:.{digits}f}" if finite(value) else DASH


def thousands(value: float | None) -> str:
    """A whole number in groups of three, or a dash."""
    return f"{value:,.0f}".replace(",", "\u202f") if finite(value) else DASH  # narrow no-break space


def duration(seconds: float | None) -> str:
    """Two units at most: 5000 -> "1 h 23 min"."""
    if not finite(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def cut(text: str, length: int) -> str:
    """Text for a plot: on one line, and without its middle where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length // 2]}…{text[len(text) - (length - 1) // 2 :]}"


def style():
    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",  # text stays text: small, sharp, in the page's font
            "svg.hashsalt": "raypref",  # same data, same file
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.formatter.limits": (-3, 4),
            "grid.alpha": 0.12,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), INK),
            **dict.fromkeys(("xtick.color", "ytick.color"), INK),
        }
    )


def svg(figure: Figure, title: str) -> Markup:
    """The figure as an inline <svg> without identifiers that clash with those of other figures in the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    body = re.sub(r"<style.*?</style>|<!--.*?-->", "", text[text.index(">", text.index("<svg")) + 1 :], flags=re.S)
    prefix = "p" + hashlib.sha1((title + body).encode()).hexdigest()[:8]
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", body).replace("xlink:href", "href")
    body = re.sub(r"\n\s*", "\n", body.replace(INK, "currentColor"))
    width, height = figure.get_size_inches() * 72
    return Markup(f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">{body}')
