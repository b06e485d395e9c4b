"""The CSS of a report, and the script that sorts its tables."""

# Each colour as (light theme, dark theme).
_RUNS = {
    "run1": ("#0969da", "#58a6ff"),
    "run2": ("#bc4c00", "#f0883e"),
    "run3": ("#1a7f37", "#56d364"),
    "run4": ("#8250df", "#bc8cff"),
    "run5": ("#bf3989", "#ff7bc5"),
    "run6": ("#7d5a00", "#e3b341"),
    "run7": ("#0f7b8a", "#4fd1d9"),
    "run8": ("#57606a", "#b1bac4"),
}
_PAGE = {
    "paper": ("#ffffff", "#10151c"),
    "ink": ("#1c2128", "#e3e8ee"),
    "soft": ("#59636e", "#9ba6b2"),
    "line": ("#d5dbe1", "#333c47"),
    "right": ("#0969da", "#1f6feb"),
    "wrong": ("#cf222e", "#f85149"),
}


def _variables(which: int) -> str:
    both = {**_PAGE, **_RUNS}
    return " ".join(f"--{name}: {values[which]};" for name, values in both.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_variables(0)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(1)} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 76rem; padding: 1rem; line-height: 1.45;
  font-family: system-ui, sans-serif; color: var(--ink); background: var(--paper);
  overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; margin: .2rem 0 1rem; }}
h2 {{ font-size: 1.3rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }}
h3 {{ font-size: 1.05rem; margin: 1.6rem 0 .5rem; }}
a {{ color: var(--run1); }}
.said {{ padding-left: 1.1rem; max-width: 46rem; }}
.note, footer {{ color: var(--soft); font-size: .9rem; max-width: 46rem; margin: .4rem 0; }}
.swatch {{ display: inline-block; width: .8em; height: .8em; border-radius: 50%;
  margin-right: .4em; }}
.key {{ display: inline-flex; align-items: baseline; }}
.key .swatch {{ flex: none; }}
.legend {{ list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem;
  padding: 0; }}
figure {{ margin: 0; }}
.charts {{ display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }}
.chart {{ max-width: 30rem; }}
.chart figcaption {{ font-weight: 600; font-size: .95rem; }}
.chart svg {{ display: block; width: 100%; height: auto; stroke-linejoin: round; }}
.chart text {{ font-family: system-ui, sans-serif !important; }}
.scroll {{ overflow: auto; max-width: 100%; max-height: 32rem; margin: .6rem 0; }}
table {{ border-collapse: collapse; font-size: .88rem; overflow-wrap: normal;
  font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; color: var(--soft); padding: .2rem 0; }}
th, td {{ padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; max-width: 26rem; }}
td small {{ display: block; white-space: nowrap; color: var(--soft); }}
thead th {{ position: sticky; top: 0; background: var(--paper); white-space: nowrap; }}
code {{ font-size: .95em; overflow-wrap: anywhere; }}
.sorts td {{ white-space: nowrap; }}
th button {{ all: unset; cursor: pointer; font-weight: 600; }}
th button:focus-visible {{ outline: 2px solid var(--run1); }}
th button::after {{ content: " \\2195"; color: var(--soft); }}
th[aria-sort=ascending] button::after {{ content: " \\2191"; }}
th[aria-sort=descending] button::after {{ content: " \\2193"; }}
.heat th, .heat td {{ padding: .2rem .3rem; min-width: 1.9rem; text-align: center;
  border: 0; }}
.heat tbody th {{ text-align: right; white-space: nowrap; position: sticky; left: 0;
  background: var(--paper); max-width: 9rem; overflow: hidden; text-overflow: ellipsis; }}
.heat thead span {{ writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
.heat thead th {{ vertical-align: bottom; }}
.heat .right {{ background: color-mix(in srgb, var(--right) var(--depth), var(--paper)); }}
.heat .wrong {{ background: color-mix(in srgb, var(--wrong) var(--depth), var(--paper)); }}
.heat .deep {{ color: #ffffff; }}
.grid {{ display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(6.6rem, 1fr)); }}
.looks {{ display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }}
.row {{ display: flex; gap: .4rem; }}
.row figure {{ flex: 1 1 0; min-width: 0; max-width: 8rem; }}
.row img {{ width: 100%; height: auto; }}
.pair {{ display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }}
.pair > * {{ min-width: 0; }}
.grid img {{ width: 100%; max-width: 8rem; height: auto; }}
img {{ display: block; border-radius: 3px; }}
img.pixels {{ image-rendering: pixelated; }}
figcaption {{ font-size: .8rem; }}
figcaption span {{ display: block; }}
details {{ margin: .6rem 0; }}
summary {{ cursor: pointer; font-weight: 600; }}
@media (max-width: 34rem) {{ th, td {{ padding: .2rem .35rem; }} }}
"""

# Cells sort as numbers if both are numbers, else as text. The first click is ascending.
SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const compare = (a, b) => {
        const [x, y] = [a, b].map((row) => row.cells[column].textContent);
        const gap = Number(x) - Number(y);
        return Number.isNaN(gap) ? x.localeCompare(y, undefined, {numeric: true}) : gap;
      };
      const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * compare(a, b));
      body.append(...rows);
    });
  });
}
"""
