"""The look of a report: system fonts, two colour schemes, tables that scroll in their own box.

All text has a contrast of at least 4.5 to 1 with what lies behind it, arms one of 3 to 1; arms take the
colours of Okabe and Ito, moved until that holds in each scheme.
"""

CSS = """
:root {
  color-scheme: light dark;
  --ink: #1b1f24; --soft: #57606a; --grid: #e3e6ea; --paper: #ffffff; --wash: #f5f7f9; --link: #0b5cad;
  --holds: #0b6b45; --fails: #b3261e; --open: #7a5600;
  --holds-wash: #e3f4ec; --fails-wash: #fdeae8; --open-wash: #fbf1d9;
  --arm0: #0072b2; --arm1: #d55e00; --arm2: #00805f; --arm3: #b3508c;
  --arm4: #b07d00; --arm5: #2f8fc7; --arm6: #5f4bb6; --arm7: #4a4f57;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9ee; --soft: #a3abb8; --grid: #2b313a; --paper: #13161b; --wash: #1b2027; --link: #7db8ff;
    --holds: #63d3a0; --fails: #ff9b90; --open: #efc35c;
    --holds-wash: #10291f; --fails-wash: #371917; --open-wash: #2f2610;
    --arm0: #4aa3e0; --arm1: #f5863a; --arm2: #2cc096; --arm3: #e28fc0;
    --arm4: #e6b93c; --arm5: #9ad4f7; --arm6: #a896f0; --arm7: #c3c9d3;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
header, main, footer { max-width: 70rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 3rem; }
footer { padding-top: 2rem; padding-bottom: 3rem; color: var(--soft); font-size: .875rem; }
h1, h2, h3 { line-height: 1.25; letter-spacing: -.01em; text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; margin: 0 0 .4rem; }
h2 { font-size: 1.45rem; margin: 3.5rem 0 .4rem; padding-top: 1.5rem; border-top: 1px solid var(--grid); }
h3 { font-size: 1.1rem; margin: 2.75rem 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.lead, .note { color: var(--soft); }
.note { font-size: .9rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; margin: 1rem 0 0; list-style: none; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .875em; }
pre {
  margin: .5rem 0 1rem; padding: 1rem; background: var(--wash); border-radius: 6px;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 32rem; overflow-y: auto;
}
aside {
  margin: 1.25rem 0; padding: .8rem 1.1rem; background: var(--open-wash); border-left: 3px solid var(--open);
  border-radius: 0 6px 6px 0;
}
aside p { margin: 0; font-weight: 600; }
aside ul { margin: .3rem 0 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .75rem 0 1.25rem; max-width: 100%; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 40%; }
caption { text-align: left; color: var(--soft); padding: 0 0 .3rem; font-size: .875rem; }
/* A caption is as wide as its table: without this, a phone would have to scroll to read it. */
caption span { display: block; position: sticky; left: 0; width: fit-content; max-width: min(46rem, calc(100vw - 2rem)); }
caption strong { color: var(--ink); }
th, td { padding: .45rem .75rem .45rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid); }
th + th, td { padding-left: .75rem; }
thead th { font-weight: 600; color: var(--soft); font-size: .82rem; vertical-align: bottom; border-color: var(--soft); }
tbody th { font-weight: 500; }
.numbers td, .numbers thead th + th { text-align: right; }
.numbers td { white-space: nowrap; }
.numbers tbody th { position: sticky; left: 0; background: var(--paper); }
.words td { overflow-wrap: break-word; min-width: 6rem; max-width: 26rem; }
.wide { min-width: 15rem; }
.mark { display: inline-block; white-space: nowrap; padding: 0 .55rem; border-radius: 1rem; font-size: .8rem; font-weight: 650; }
.HOLDS { color: var(--holds); background: var(--holds-wash); }
.FAILS { color: var(--fails); background: var(--fails-wash); }
.INCONCLUSIVE { color: var(--open); background: var(--open-wash); }
.small { display: block; color: var(--soft); font-size: .82rem; }
.arm { display: inline-flex; align-items: center; gap: .45rem; overflow-wrap: anywhere; }
table .arm { width: max-content; max-width: 16rem; }
.arm svg { flex: none; width: 1.7rem; height: .8rem; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; margin: .4rem 0; padding: 0; list-style: none; font-size: .9rem; }
figure { margin: .5rem 0 1.25rem; }
figcaption { color: var(--soft); font-size: .875rem; max-width: 46rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem 1.5rem; }
.panel svg { display: block; width: 100%; max-width: 34rem; height: auto; overflow: visible; font-variant-numeric: tabular-nums; }
.panel svg * { stroke-linejoin: round; }
details { margin: .4rem 0; }
summary { cursor: pointer; padding: .2rem 0; }
@media (max-width: 30rem) {
  header { padding-top: 1.75rem; }
  header, main, footer { padding-left: 1rem; padding-right: 1rem; }
  h1 { font-size: 1.5rem; }
  table .arm { max-width: 9rem; }
}
@media print { .scroll { overflow: visible; } pre { max-height: none; } }
"""
