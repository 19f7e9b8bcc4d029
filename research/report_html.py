"""HTML from Python values: every text is escaped unless it is already `Html`."""

import html
import re

from research.report_style import CSS

VOID = ("meta", "br", "hr", "img")
# Nothing is fetched and nothing runs, whatever a sample or a name may hold.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


class Html(str):
  """Text that is markup already."""


def escape(value) -> Html:
  """Returns text as HTML shows it; control characters, which HTML cannot hold, become U+FFFD."""
  if isinstance(value, Html):
    return value
  return Html(html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", str(value))))


def tag(name: str, /, *children, **attributes) -> Html:
  """Returns an element; `class_` and `aria_label` are spelled class and aria-label."""
  text = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(escape_attribute(value))}"'
                 for key, value in attributes.items() if value != "")
  inner = Html("").join(escape(child) for child in children)
  return Html(f"<{name}{text}>" if name in VOID else f"<{name}{text}>{inner}</{name}>")


def escape_attribute(value) -> str:
  return html.unescape(escape(str(value)))


def join(children, between="") -> Html:
  """Returns elements one after the other."""
  return Html(between.join(escape(child) for child in children))


def table(caption: str, head: list, rows: list[list], *, numbers=True, label: str = "") -> Html:
  """Returns a table that scrolls in a box of its own; the first cell of each row is its header.

  Args:
    caption: what it holds.
    head: of the columns.
    rows: of cells.
    numbers: whether the other columns are numbers, set flush right.
    label: of the box, for those who cannot see it; the caption unless given.
  """
  top = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head)))
  body = tag("tbody", *(tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
                        for row in rows))
  inner = tag("table", tag("caption", tag("span", caption)), top, body, class_="numbers" if numbers else "words")
  return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=label or caption)


def document(title: str, *body) -> str:
  """Returns the whole page."""
  head = tag("head", tag("meta", charset="utf-8"), tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
             tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
             tag("meta", name="color-scheme", content="light dark"), tag("title", title),
             tag("style", Html(CSS)))
  return f"<!doctype html>\n<html lang=\"en\">{head}\n{tag('body', *body)}</html>\n"
