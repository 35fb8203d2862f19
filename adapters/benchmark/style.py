"""The report's style sheet: light and dark, one accent colour for the project's own method."""

STYLE = (
    """
:root { --page: #fbfbfa; --card: #ffffff; --ink: #1d1d1b; --quiet: #66655f; --rule: #e4e3de; --own: #2563b0;
  --variant: #7ba7d9; --other: #9a9993; --ceiling: #c9c7bf; --second: #c0582b;
  --h0: #f1f5fa; --h1: #e1ebf6; --h2: #cfdff1; --h3: #b8d0ea; --h4: #9dbee1; --h5: #7fa9d6; --h6: #6093c8;
  --h7: #437cb6; --h8: #2c659f; --h9: #174c83; }
@media (prefers-color-scheme: dark) { :root { --page: #171716; --card: #1f1f1e; --ink: #ecebe7; --quiet: #a3a29b;
  --rule: #383735; --own: #6aa6ea; --variant: #3f6fa8; --other: #7b7a75; --ceiling: #55544f; --second: #e0895f;
  --h0: #22262b; --h1: #25303c; --h2: #273a4e; --h3: #294662; --h4: #2b5378; --h5: #2e618f; --h6: #3a74a8;
  --h7: #5089bf; --h8: #6d9fd2; --h9: #93bae4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 48px 0 4px; }
h3 { font-size: 15px; margin: 28px 0 8px; }
p { margin: 0 0 12px; max-width: 110ch; } .quiet, figcaption { color: var(--quiet); font-size: 13px; }
nav a { color: var(--own); margin-right: 14px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 5px 12px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--quiet); font-weight: 500; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.best { font-weight: 700; } tr.own td:first-child { color: var(--own); font-weight: 600; }
tr.ceiling td { color: var(--quiet); }
.plots { display: flex; flex-wrap: wrap; gap: 16px; }
figure { margin: 0; padding: 12px 16px; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  max-width: 100%; overflow-x: auto; }
figcaption { margin-bottom: 8px; font-weight: 600; color: var(--ink); }
svg { display: block; font-size: 12px; font-family: inherit; }
svg text { fill: var(--ink); } svg .label { fill: var(--quiet); }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.bar.own { fill: var(--own); } .bar.variant { fill: var(--variant); } .bar.other { fill: var(--other); }
.bar.ceiling { fill: var(--ceiling); } .bar.second { fill: var(--second); }
.axis { stroke: var(--quiet); } .interval { stroke: var(--ink); } .grid { stroke: var(--rule); }
.line { fill: none; stroke-width: 2; } .line.own { stroke: var(--own); } .line.other { stroke: var(--other); }
.line.second { stroke: var(--second); } .line.variant { stroke: var(--variant); }
.dot.own { fill: var(--own); } .dot.other { fill: var(--other); } .dot.second { fill: var(--second); }
.dot.variant { fill: var(--variant); }
.dot { stroke: var(--card); stroke-width: 2; }
"""
    + "\n".join(f".h{i} {{ fill: var(--h{i}); }}" for i in range(10))
    + """
svg .c6, svg .c7, svg .c8, svg .c9 { fill: #ffffff; }
@media (prefers-color-scheme: dark) { svg .c7, svg .c8, svg .c9 { fill: #10161d; } }
"""
)
