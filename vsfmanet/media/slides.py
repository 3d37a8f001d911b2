"""Pictures of one moment in an HTML page, with a slider between any two. Pages need no other files.

Without scripts, the pictures stand one below the other.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1d1d1f; --soft: #5f6368; --line: #d8d8dc; --mark: #0b57d0;
  --good: #176b33; --warn: #7d5200; --bad: #a31515; --card: #f5f5f7 }
@media (prefers-color-scheme: dark) { :root { --ground: #161618; --ink: #e8e8ea; --soft: #a0a4aa; --line: #38383c;
  --mark: #8ab4f8; --good: #7ddb9b; --warn: #f2bf6a; --bad: #ff9d94; --card: #222226 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 80rem; padding: 1.5rem 1rem;
  background: var(--ground); color: var(--ink); overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem }
a { color: var(--mark) }
code { font: .9em ui-monospace, monospace }
figure { margin: 0 }
figcaption, .soft { color: var(--soft); font-size: .875rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line) }
.number { text-align: right; white-space: nowrap }
details { margin: 1rem 0 }
summary { cursor: pointer }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .5rem 0 }
dd { margin: 0 }
@media (max-width: 56rem) {
  dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: .5rem }
  table, tbody, tr, td { display: block; width: auto } thead { display: none }
  tr { background: var(--card); border-radius: .5rem; margin-bottom: .8rem; padding: .5rem .8rem }
  td { border: 0; padding: .15rem 0 } td:empty { display: none }
  td.number { text-align: left; white-space: normal }
  td[data-name]::before { content: attr(data-name) ": "; color: var(--soft) }
}
.shots { position: relative }
.shot img { display: block; width: 100%; height: auto; background: var(--card) }
.shot span { display: block; padding: .2rem 0 .8rem; color: var(--soft); font-size: .875rem }
.live .shots { display: grid; overflow: hidden; border-radius: .3rem }
.live .shot { grid-area: 1 / 1; visibility: hidden; position: relative }
.live .shot img { aspect-ratio: inherit }
.live .left, .live .right { visibility: visible }
.live .right { clip-path: inset(0 0 0 var(--cut)) }
.live .shot span { position: absolute; bottom: .5rem; padding: .1rem .5rem; border-radius: .3rem; max-width: 48%;
  background: rgb(0 0 0 / .65); color: #fff; font-size: .8rem }
.live .left span { left: .5rem } .live .right span { right: .5rem }
.live .shots::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--cut); width: 2px;
  margin-left: -1px; background: #fff; box-shadow: 0 0 3px rgb(0 0 0 / .8); pointer-events: none }
.live input { grid-area: 1 / 1; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; z-index: 1;
  touch-action: pan-y }
.live .shots:focus-within { outline: 3px solid var(--mark); outline-offset: 2px }
.sides { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; padding: .5rem 0 }
select { font: inherit; max-width: 100% }
"""

SCRIPT = """
for (const figure of document.querySelectorAll("figure.slides")) {
  const stack = figure.querySelector(".shots"), shots = [...stack.querySelectorAll(".shot")];
  if (shots.length < 2) continue;
  const show = (side, number) => shots.forEach((shot, n) => shot.classList.toggle(side, n === number));
  const range = Object.assign(document.createElement("input"), {type: "range", min: 0, max: 100, step: .5, value: 50});
  range.setAttribute("aria-label", "Place of the line between the two pictures, in per cent from the left");
  range.oninput = () => stack.style.setProperty("--cut", range.value + "%");
  stack.append(range);
  if (shots.length > 2) {
    const sides = Object.assign(document.createElement("div"), {className: "sides"});
    for (const [side, first] of [["left", 0], ["right", 1]]) {
      const select = document.createElement("select"), label = document.createElement("label");
      shots.forEach((shot, n) => select.add(new Option(shot.querySelector("span").textContent, n, n === first,
        n === first)));
      select.onchange = () => show(side, select.selectedIndex);
      label.append(side + ": ", select);
      sides.append(label);
    }
    stack.after(sides);
  }
  show("left", 0); show("right", 1);
  range.oninput();
  figure.classList.add("live");
}
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="{generator}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slide:
    """One of the pictures of a moment."""

    name: str
    """Name of the version, shown on the picture."""
    alt: str
    """Description for those who do not see it."""
    jpeg: bytes
    """The picture."""
    size: tuple[int, int]
    """Width and height at which it is shown, pixels of a display."""


def figure(slides: Sequence[Slide], caption: str = "") -> str:
    """HTML of some pictures of the same size, with a slider between two of them.

    Args:
        slides: The pictures.
        caption: Text below them.
    """
    shots = "".join(
        f'<div class="shot"><img src="data:image/jpeg;base64,{b64encode(slide.jpeg).decode()}" '
        f'alt="{escape(slide.alt)}" width="{slide.size[0]}" height="{slide.size[1]}" loading="lazy" '
        f'style="aspect-ratio: {slide.size[0]} / {slide.size[1]}"><span>{escape(slide.name)}</span></div>'
        for slide in slides
    )
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    width = max(slide.size[0] for slide in slides)
    return f'<figure class="slides"><div class="shots" style="max-width: {width}px">{shots}</div>{below}</figure>'


def page(*, title: str, body: str, generator: str, style: str = "") -> str:
    """A whole HTML page that needs no other files.

    Args:
        title: Text for the browser's window.
        body: HTML.
        generator: Name and version of the program.
        style: CSS beside that of all pages.
    """
    return PAGE.format(title=escape(title), body=body, generator=escape(generator), style=STYLE + style, script=SCRIPT)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int], caption: str = "") -> str:
    """HTML of a table, which becomes a list of cards on a narrow screen.

    Args:
        heads: Headings, text.
        rows: Cells, HTML.
        numbers: Columns that hold numbers.
        caption: Text below it.
    """
    kinds = ['class="number" ' if n in numbers else "" for n in range(len(heads))]
    head = "".join(f'<th {kind}scope="col">{escape(name)}</th>' for kind, name in zip(kinds, heads, strict=True))
    lines = "".join(
        "<tr>"
        + "".join(
            f'<td {kind}data-name="{escape(name)}">{cell}</td>' if cell else "<td></td>"
            for kind, name, cell in zip(kinds, heads, row, strict=True)
        )
        + "</tr>\n"
        for row in rows
    )
    below = f'<p class="soft">{escape(caption)}</p>' if caption else ""
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{lines}</tbody></table>{below}"


def settings_list(values: Sequence[tuple[str, str]]) -> str:
    """HTML of names and values, folded."""
    if not values:
        return '<p class="soft">Settings: the defaults.</p>'
    pairs = "".join(f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>" for name, value in values)
    return f"<details><summary>Settings that are not the defaults</summary><dl>{pairs}</dl></details>"
