"""The style sheet of a report: light or dark as the reader's system asks, readable on paper and on a telephone."""

STYLE = """
:root { --ink: #22262e; --soft: #626a76; --grid: #dfe2e8; --paper: #fdfdfe; --card: #f5f6f9; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e9ee; --soft: #a2a9b6; --grid: #343942; --paper: #16181d; --card: #1f2229; --bad: #ff8a80; }
  figure > svg g[id^="line2d"], figure > svg g[id^="FillBetween"], table .mark { filter: brightness(1.25); }
  figure > svg text { filter: brightness(1.2); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 0.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; letter-spacing: -0.01em; margin: 3rem 0 0.75rem; padding-top: 1rem;
  border-top: 1px solid var(--grid); overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
p { max-width: 46rem; margin: 0.5rem 0; overflow-wrap: anywhere; }
.lead { color: var(--soft); font-size: 1.1rem; margin: 0 0 1rem; }
.verdicts { list-style: none; margin: 0; padding: 1rem 1.25rem; background: var(--card); border-radius: 0.6rem; }
.verdicts li { margin: 0.45rem 0; max-width: 50rem; overflow-wrap: anywhere; }
.verdicts li { padding-left: 1.6rem; position: relative; }
.sign { position: absolute; left: 0; color: var(--soft); }
.note, footer, figcaption { color: var(--soft); font-size: 0.875rem; }
.bad { color: var(--bad); }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th { color: var(--soft); font-weight: 500; text-align: left; vertical-align: bottom; }
th, td { padding: 0.4rem 0.9rem 0.4rem 0; border-bottom: 1px solid var(--grid); }
td:first-child { font-weight: 600; white-space: nowrap; }
td { overflow-wrap: anywhere; max-width: 40rem; }
.number { text-align: right; white-space: nowrap; }
th.number { white-space: normal; }
.number:last-child { padding-right: 0; }
.mark { width: 0.7em; height: 0.7em; margin-right: 0.45em; }
figure { margin: 1.5rem 0 2rem; }
figure > svg { display: block; width: 100%; height: auto; }
figure > svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif !important; }
figcaption { margin-top: 0.4rem; max-width: 46rem; overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.25rem; }
.picture { margin: 0; }
.picture img { display: block; width: 100%; image-rendering: pixelated; border-radius: 0.4rem; border: 1px solid var(--grid); }
pre { background: var(--card); padding: 0.9rem 1.1rem; border-radius: 0.6rem; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: 0.875rem; }
details summary { cursor: pointer; color: var(--soft); }
footer { margin-top: 3rem; }
@media print { main { max-width: none; padding: 0; } figure, table { break-inside: avoid; } details { display: none; } }
"""
