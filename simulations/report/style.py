"""The look of the report: one column to read, two of charts where there is room, light, dark and on paper."""

from __future__ import annotations

# Colours a and b are blue and orange of Okabe and Ito's palette, which colour-blind readers tell apart; on white they
# are darkened until their labels reach a contrast of 4.5. Paper is always light.
CSS = """
:root { color-scheme: light dark; --paper: #fdfdfc; --card: #f4f4f1; --ink: #1c1d1f; --muted: #5d6066;
  --rule: #dddcd7; --grid: #e3e2dd; --a: #0068a8; --b: #b34a00; --warn: #8a3300; --warn-paper: #fdf1e7; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #16181b; --card: #1f2226; --ink: #e8e8e5;
  --muted: #a3a7ad; --rule: #34383e; --grid: #2b2f34; --a: #62b6ea; --b: #f0a04b; --warn: #ffc58a;
  --warn-paper: #33261a; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums; }
main, header, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1, h2 { font-family: Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif; font-weight: 600;
  line-height: 1.2; text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: 2.1rem; margin: .15rem 0 .4rem; }
h2 { font-size: 1.35rem; margin: 0 0 .6rem; }
h2.later { margin-top: 0; }
sup { font-size: .75em; line-height: 0; }
p { max-width: 44rem; margin: 0 0 .8rem; }
section { margin-top: 2.2rem; padding-top: 1.4rem; border-top: 1px solid var(--rule); }
.kind { color: var(--muted); font-size: .85rem; letter-spacing: .04em; margin: 0; }
.lede { font-size: 1.08rem; color: var(--muted); }
.stopped { background: var(--warn-paper); color: var(--warn); padding: .6rem .9rem; border-radius: 6px;
  max-width: none; }
.warning { color: var(--warn); border-left: 3px solid currentColor; padding-left: .8rem; }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: .8rem; margin: 1.4rem 0 0; }
.cards > div { background: var(--card); border-radius: 8px; padding: .9rem 1.1rem 1rem; }
.cards dt { color: var(--muted); font-size: .85rem; }
.cards dd { margin: 0; font-size: .85rem; line-height: 1.4; }
.cards b { display: block; font-size: 1.7rem; font-weight: 600; line-height: 1.35; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1.6rem 2.5rem;
  margin-top: 1.2rem; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { line-height: 1.35; }
figcaption span { display: block; color: var(--muted); font-size: .85rem; }
.chart > svg { display: block; overflow: visible; }
.chart svg svg { overflow: visible; }
.chart text { font-size: 12px; fill: var(--muted); }
.chart text.value { font-weight: 600; }
.chart text { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.grid { stroke: var(--grid); }
.mark { stroke: var(--ink); stroke-dasharray: 1 4; stroke-width: 1.5; stroke-linecap: round; }
.line, .dots { fill: none; stroke-linejoin: round; stroke-linecap: round; vector-effect: non-scaling-stroke; }
.line { stroke-width: 2; }
.line.fine { stroke-width: 1; }
.dots { stroke-width: 5; }
.band { fill-opacity: .16; stroke: none; }
.column { stroke: var(--paper); stroke-width: 1; }
.bar { stroke-width: 8; stroke-linecap: round; }
.bar.wide { stroke-opacity: .5; }
path.line.b { stroke-dasharray: 7 5; }
path.line.a, path.dots.a, line.a { stroke: var(--a); } .chart text.a, circle.a, .band.a, .column.a { fill: var(--a); }
path.line.b, path.dots.b, line.b { stroke: var(--b); } .chart text.b, circle.b, .band.b, .column.b { fill: var(--b); }
circle { stroke: var(--paper); stroke-width: 1.5; }
.scroll { overflow-x: auto; } .charts + .scroll, .charts + .facts { margin-top: 1.6rem; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: right; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--rule); font-weight: inherit;
  vertical-align: baseline; }
thead th { color: var(--muted); font-size: .85rem; white-space: nowrap; }
th:first-child { text-align: left; }
.scroll td { white-space: nowrap; } .scroll th[scope=row] { min-width: 9rem; white-space: pre-wrap; }
table.facts { width: 100%; max-width: 44rem; }
table.facts th { color: var(--muted); width: 9.5rem; }
table.facts td { text-align: left; padding-right: 0; overflow-wrap: anywhere; }
.amount { display: inline-block; width: 10rem; }
.meter { display: inline-block; height: .55em; min-width: 1px; border-radius: 2px; background: var(--a); }
code, pre { font: .88em/1.5 ui-monospace, "Cascadia Mono", "SF Mono", Menlo, Consolas, monospace; }
code { overflow-wrap: anywhere; }
code.hash { font-size: .8em; }
pre { background: var(--card); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; margin: .4rem 0 .9rem;
  white-space: pre-wrap; overflow-wrap: anywhere; user-select: all; -webkit-user-select: all; }
details { margin: .9rem 0 0; }
summary { cursor: pointer; color: var(--muted); margin-bottom: .4rem; }
ul { max-width: 44rem; padding-left: 1.2rem; margin: 0; }
li { margin-bottom: .3rem; overflow-wrap: anywhere; }
:focus-visible { outline: 2px solid var(--a); outline-offset: 2px; }
footer { color: var(--muted); font-size: .85rem; padding-top: 2rem; padding-bottom: 3rem; }
@media (max-width: 54rem) { .cards { grid-template-columns: 1fr 1fr; } }
@media (max-width: 30rem) { .cards > div { padding: .7rem .8rem .8rem; } .cards b { font-size: 1.35rem; }
  body { font-size: 15px; } header { padding-top: 1.4rem; } h1 { font-size: 1.7rem; }
  table.facts th { width: 7rem; }
  .comparison .plot { font-size: 15px; } .comparison .plot .head { font-size: 18px; }
  .comparison .plot .letter { font-size: 12.5px; } }
@media print { @page { size: A4; margin: 16mm; } body { font-size: 10.5pt; }
  main, header, footer { max-width: none; padding: 0; }
  header { padding-top: 0; } .cards > div, pre, tr { break-inside: avoid; }
  h2, h2 + p { break-after: avoid; } section { margin-top: 6mm; padding-top: 4mm; } footer { padding: 4mm 0 0; }
  :root { --paper: #fff; }
  .cards { grid-template-columns: repeat(4, 1fr); gap: 3mm; } .cards > div { border: 1px solid var(--rule);
  padding: 3mm; }
  .cards b { font-size: 15pt; } .charts { grid-template-columns: 1fr 1fr; gap: 6mm 8mm; }
  .line, .dots, .bar, .band, .column, .meter, .cards > div, pre { print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
  .scroll { overflow: visible; } .scroll table { font-size: 8.5pt; } .scroll th[scope=row] { min-width: 0; }
  .scroll th, .scroll td { white-space: normal; overflow-wrap: anywhere; padding-right: .6rem; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; } }
"""
