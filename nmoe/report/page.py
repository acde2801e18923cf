"""The frame of the HTML report: its template and its style sheet, light and dark, for wide and narrow screens and for print."""

from string import Template

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f4f6f8; --card: #ffffff; --ink: #16202a; --quiet: #566270; --line: #dfe4ea; --grid: #d9dee4; --slate: #85909b;
  --blue: #0072b2; --sky: #56b4e9; --orange: #d55e00; --green: #009e73; --purple: #b0568a; --mark: #e8f2f9; --warn: #fdf1e7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1419; --card: #182028; --ink: #e4e9ee; --quiet: #9aa7b4; --line: #2b3641; --grid: #2f3a45; --slate: #7b8794;
    --blue: #4ba3dc; --sky: #8fd0f7; --orange: #f08a45; --green: #3cc79c; --purple: #d98ab8; --mark: #1c3345; --warn: #38291c;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 40px 24px 64px; }
header { margin-bottom: 28px; }
.eyebrow { margin: 0 0 6px; color: var(--blue); font-weight: 600; font-size: 14px; letter-spacing: .02em; overflow-wrap: anywhere; }
h1 { margin: 0 0 12px; font-size: clamp(26px, 4vw, 38px); line-height: 1.15; letter-spacing: -.015em; overflow-wrap: anywhere; }
.lead { margin: 0; max-width: 80ch; text-wrap: pretty; font-size: 17px; color: var(--quiet); overflow-wrap: anywhere; }
h2 { margin: 44px 0 14px; font-size: 22px; letter-spacing: -.01em; }
h3 { margin: 0 0 8px; font-size: 15px; }
.tiles { display: grid; grid-template-columns: repeat(var(--columns, 4), minmax(0, 1fr)); gap: 14px; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 14px 16px; }
.tile .label { font-size: 13px; color: var(--quiet); }
.tile .value { font-size: 27px; font-weight: 650; line-height: 1.25; letter-spacing: -.01em; font-variant-numeric: tabular-nums; }
.tile .note { font-size: 13px; color: var(--quiet); }
.tile.main { border-color: var(--blue); box-shadow: inset 0 3px 0 var(--blue); }
.tile.main .value { color: var(--blue); }
.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px; align-items: start; }
.stack { display: grid; gap: 18px; min-width: 0; }
.card { padding: 18px; min-width: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
th { text-align: left; font-weight: 600; font-size: 13px; color: var(--quiet);
  border-bottom: 1px solid var(--line); padding: 4px 10px 6px 0; }
td { padding: 6px 10px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td:last-child:not(.number) { overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; padding-right: 0; padding-left: 18px; white-space: nowrap; font-variant-numeric: tabular-nums; }
.bar { display: block; height: 4px; margin-top: 3px; border-radius: 2px; background: var(--line); overflow: hidden; min-width: 64px; }
.bar i { display: block; height: 100%; background: var(--slate); }
tr.main td { font-weight: 650; color: var(--blue); }
tr.main .bar i { background: var(--blue); }
.note-text { margin: 10px 0 0; font-size: 14px; color: var(--quiet); }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { margin-top: 10px; font-size: 14px; color: var(--quiet); }
.warn { background: var(--warn); }
dl { margin: 0; columns: 3 240px; column-gap: 32px; font-size: 14px; }
dl div { break-inside: avoid; display: flex; justify-content: space-between; gap: 14px; padding: 5px 0;
  border-bottom: 1px solid var(--line); }
dt { color: var(--quiet); white-space: nowrap; }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
pre { margin: 0; font: 14px/1.5 ui-monospace, "Liberation Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
footer { margin-top: 44px; font-size: 13px; color: var(--quiet); overflow-wrap: anywhere; }
@media (max-width: 860px) {
  main { padding: 24px 14px 48px; }
  .grid { grid-template-columns: minmax(0, 1fr); }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  .tile { padding: 12px; }
  .tile .value { font-size: 22px; }
  .card { padding: 14px; }
  table { font-size: 14px; }
  th { font-size: 12px; }
  .number { padding-left: 8px; }
  .bar { min-width: 44px; }
}
@media print {
  body { background: none; }
  .card, .tile { break-inside: avoid; }
}
"""
