"""The frame of a report, its cards and its tables, as HTML."""

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --ink: #1c1f24; --soft: #5d6672; --line: #e3e5e8;
  --plus: #1f6feb; --minus: #c2410c; --second: #c2410c; --on: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --page: #121417; --card: #1b1e23; --ink: #e8eaed; --soft: #9aa4b1;
  --line: #2f343b; --plus: #6cb0ff; --minus: #ff9a62; --second: #ff9a62; --on: #0c1117; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 60px }
h1 { font-size: 28px; margin: 0 0 4px } h2 { font-size: 17px; margin: 0 0 6px }
p { margin: 0 0 14px } .soft, figcaption { color: var(--soft) } figcaption { margin-bottom: 14px }
.tiles { display: flex; flex-wrap: wrap; gap: 14px; margin: 22px 0 }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 18px;
  flex: 1 1 150px }
.tile b { display: block; font-size: 22px; font-variant-numeric: tabular-nums }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 18px }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px;
  overflow-x: auto } figure.wide { grid-column: 1 / -1 }
svg { max-width: 100%; height: auto; display: block; font: 12px system-ui, sans-serif }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); white-space: nowrap }
td.n, th.n { text-align: right } tr:last-child td { border-bottom: 0 }
.grid { stroke: var(--line) } .tick, .axis { fill: var(--soft) } .value { fill: var(--ink); font-size: 11px }
.value.on { fill: var(--on) } .mid { text-anchor: middle } .end { text-anchor: end }
.curve { fill: none; stroke-width: 2.2; stroke-linejoin: round } .c0 { stroke: var(--plus) }
.c1 { stroke: var(--second); stroke-dasharray: 6 4 }
.bar, .plus { fill: var(--plus) } .minus { fill: var(--minus) } .bar { fill-opacity: .8 }
ul { color: var(--soft); padding-left: 20px }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,"><title>{title}</title><style>{style}</style></head><body><main>
<h1>{title}</h1><p class="soft">{subtitle}</p>
<div class="tiles">{tiles}</div>
<div class="grid2">{figures}</div>
{remarks}</main></body></html>
"""


def page(title: str, subtitle: str, tiles: Sequence[str], figures: Sequence[str], remarks: Sequence[str]) -> str:
    """The HTML of a report.

    Args:
        title: plain text.
        subtitle: plain text.
        tiles: from `tile`.
        figures: from `figure`.
        remarks: plain text, a sentence each.
    """
    listed = "".join(f"<li>{escape(remark)}</li>" for remark in remarks)
    return _PAGE.format(
        title=escape(title),
        style=STYLE,
        subtitle=escape(subtitle),
        tiles="".join(tiles),
        figures="".join(figures),
        remarks=f"<h2 style='margin-top:28px'>Remarks</h2><ul>{listed}</ul>" if listed else "",
    )


def figure(title: str, note: str, body: str, wide: bool = False) -> str:
    """A card with a title, a note, and a drawing or a table as HTML, `body`."""
    return (
        f'<figure class="{"wide" if wide else ""}"><h2>{escape(title)}</h2><figcaption>{escape(note)}</figcaption>'
        f"{body}</figure>"
    )


def tile(number: str, text: str) -> str:
    """A number, and what it counts."""
    return f'<div class="tile"><b>{escape(number)}</b><span class="soft">{escape(text)}</span></div>'


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: frozenset[str]) -> str:
    """A table of plain text; the columns whose heads are in `numeric` are aligned to the right."""
    sides = ["n" if head in numeric else "" for head in heads]
    head = "".join(f'<th class="{side}">{escape(name)}</th>' for name, side in zip(heads, sides, strict=True))
    lines = (
        "".join(f'<td class="{side}">{escape(cell)}</td>' for cell, side in zip(row, sides, strict=True))
        for row in rows
    )
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
