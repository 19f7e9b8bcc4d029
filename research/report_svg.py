"""Panels as inline SVG that takes its colours and its font from the page, so that one drawing serves light and dark.

The drawing is made in placeholder colours, which become CSS variables: #fd0000.. ink, soft, grid and paper,
#fe0000.. the arms.
"""

import io
import re
import warnings

from research import panels
from research.report_html import Html, tag

NAMES = ("ink", "soft", "grid", "paper")
ARMS = 8
PAGE = panels.Theme(*(f"#fd000{i}" for i in range(len(NAMES))), tuple(f"#fe000{i}" for i in range(ARMS)))
_SETTINGS = {"svg.fonttype": "none", "font.size": 9.5, "path.simplify": True, "axes.unicode_minus": True}


def panel(draw, describe: str, width=5.0, height=3.1) -> Html:
  """Returns a figure element.

  Args:
    draw: called with the axes to draw on.
    describe: for those who cannot see it.
    width: in inches at the size where its text has the size of the page's small print.
    height: likewise.
  """
  import matplotlib
  from matplotlib.figure import Figure
  with matplotlib.rc_context(_SETTINGS | {"svg.hashsalt": describe}), warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # no room for the layout at odd sizes: the panel is still drawn
    figure = Figure(figsize=(width, height), layout="constrained")
    draw(figure.subplots())
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True,
                   metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
  return tag("div", _themed(text.getvalue(), describe), class_="panel")


def _themed(text: str, describe: str) -> Html:
  body = re.search(r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>(.*)</svg>", text, re.DOTALL)
  inner = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body[2], flags=re.DOTALL)
  inner = re.sub(r'<g id="[^"]*"', "<g", inner)  # the same in every figure, and nothing refers to them
  inner = re.sub(r"(?<=: )#fd000([0-3])", lambda m: f"var(--{NAMES[int(m[1])]})", inner)
  inner = re.sub(r"(?<=: )#fe000([0-7])", r"var(--arm\1)", inner)
  inner = re.sub(r"font(?:-family)?: ([^;\"]*?)'[^;\"]*", lambda m: _font(m[1]), inner)
  inner = re.sub(r"\n\s*", "\n", inner)
  # Hundredths of a point are finer than any screen; what is written between tags stays as it is.
  inner = re.sub(r"<[^>]*>", lambda m: re.sub(r"(\d\.\d\d)\d+", r"\1", m[0]), inner)
  return tag("svg", Html(inner), viewBox=body[1], role="img", aria_label=describe)


def _font(before):
  size = re.search(r"([\d.]+)px", before)
  weight = "font-weight: 600; " if re.search(r"\b(600|bold)\b", before) else ""
  return f"{weight}font-size: {size[1]}px" if size else "font-family: inherit"
