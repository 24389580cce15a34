"""The page's style sheet: narrow screens, wide ones, dark ones, and paper."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #595959; --line: #d4d4d4;
  --paper: #ffffff; --band: #f4f5f7; --warn: #8a4b00; --theirs: #5b3a86; --link: #00599c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --soft: #ababab; --line: #4a4a4a;
  --paper: #16181b; --band: #212429; --warn: #f0b357; --theirs: #c9acf0; --link: #7cc0f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: .6rem;
  border-top: 2px solid var(--line); overflow-wrap: anywhere; }
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; overflow-wrap: anywhere; }
h4 { font-size: 1rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 50rem; overflow-wrap: anywhere; }
.note, figcaption { color: var(--soft); font-size: .875rem; }
.warning { border-left: 4px solid #e69f00; padding: .2rem .7rem; color: var(--warn); }
nav ul { margin: .5rem 0; padding-left: 1.2rem; } nav ul ul { margin: 0; }
a { color: var(--link); }
.scroll { overflow-x: auto; margin: .75rem 0; max-width: 100%; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .25rem 0; }
caption span { display: block; position: sticky; left: 0; max-width: min(50rem, calc(100vw - 2rem));
  color: var(--soft); font-size: .875rem; }
th, td { padding: .2rem .55rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; white-space: normal; }
tbody tr:nth-child(even) > * { background: var(--band); }
th:first-child { text-align: left; font-weight: 600; position: sticky; left: 0;
  background: var(--paper); }
tbody tr:nth-child(even) > th:first-child { background: var(--band); }
td.theirs, th.theirs { color: var(--theirs); font-style: italic;
  border-left: 1px dashed var(--theirs); }
.figures { columns: 2 24rem; column-gap: 2rem; margin: 1rem 0; }
figure { margin: 0 0 1.5rem; break-inside: avoid; }
figure.wide { column-span: all; }
figure svg { display: block; max-width: 100%; height: auto; }
figure:not(.wide) svg { width: 100%; max-width: 34rem; }
figure.wide .scroll svg { max-width: none; }
figcaption { margin-top: .25rem; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--link); font-size: .875rem; }
pre { background: var(--band); padding: .75rem; overflow-x: auto; font-size: .75rem; }
@media (max-width: 40rem) { body { padding: .75rem; font-size: 15px; } h1 { font-size: 1.35rem; }
  th, td { padding: .2rem .4rem; } th:first-child { min-width: 6.5rem; max-width: 9.5rem;
  white-space: normal; overflow-wrap: break-word; } }
@media print { :root { --ink: #000; --soft: #333; --line: #999; --paper: #fff; --band: #f4f4f4; }
  @page { margin: 12mm; } body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; } table { font-size: 7pt; } th, td { padding: 1pt 3pt; }
  th, td { white-space: normal; }
  h2, h3, h4 { break-after: avoid; } tr, figure { break-inside: avoid; }
  nav, details { display: none; } caption span { max-width: none; }
  .note, figcaption, caption span { font-size: 8pt; }
  thead { display: table-header-group; } figure svg, figure.wide .scroll svg { max-width: 100%; }
  .figures { columns: 2; } th:first-child { position: static; } }
"""
