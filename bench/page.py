"""The page of a report of bench/run.py: plots of the ratios, first starts and memory, and the table. One file, no network."""

import html
import math

COLOURS = ["#0b6e4f", "#c0552d", "#3d5a98", "#8a6d1d", "#7a3b7a", "#555555"]
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c1c1c }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem } svg { width: 100%; height: auto }
svg text { font: 12px system-ui, sans-serif; fill: #1c1c1c } .grid { stroke: #d8d8d8 } .one { stroke: #1c1c1c }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left } .lost { color: #a8321a; font-weight: 600 } .key { margin-right: 1.2rem }
.key::before { content: ""; display: inline-block; width: .8em; height: .8em; margin-right: .4em; background: var(--c) }
"""
LEFT, RIGHT, ROW = 190, 60, 14


def ticks(low, high):
    """Marks of a logarithmic scale: 1, 2 and 5 times powers of ten."""
    marks = [m * 10.0**e for e in range(-6, 10) for m in (1, 2, 5)]
    return [m for m in marks if low <= m <= high]


def bars(rows, names, unit, base=None):
    """Bars on a logarithmic scale: for each (label, values) one by name, from `base` or from the left edge."""
    values = [v for _, given in rows for v in given if v]
    if not values:
        return "<p>Nothing was measured.</p>"
    low = min(values) if base is None else min(min(values), base)
    high = max(values) if base is None else max(max(values), base)
    low, high = low / 1.25, high * 1.1
    width = 1000
    height = len(rows) * (len(names) * ROW + 8) + 30

    def x(value):
        return LEFT + (width - LEFT - RIGHT) * math.log(value / low) / math.log(high / low)

    out = [f'<svg viewBox="0 0 {width} {height}" role="img">']
    for mark in ticks(low, high):
        kind = "one" if mark == base else "grid"
        out.append(f'<line class="{kind}" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="0" y2="{height - 20}"/>')
        out.append(f'<text x="{x(mark):.1f}" y="{height - 5}" text-anchor="middle">{mark:g}{unit}</text>')
    y = 4
    for label, given in rows:
        middle = y + len(names) * ROW / 2 + 4
        out.append(f'<text x="{LEFT - 8}" y="{middle:.1f}" text-anchor="end">{html.escape(label)}</text>')
        for value, colour in zip(given, COLOURS, strict=False):
            if value:
                start, end = sorted((x(value), x(base) if base else LEFT))
                out.append(f'<rect x="{start:.1f}" y="{y}" width="{max(end - start, 1):.1f}" height="{ROW - 3}" fill="{colour}"/>')
                out.append(f'<text x="{end + 4:.1f}" y="{y + ROW - 4}">{value:.3g}</text>')
            y += ROW
        y += 8
    return "\n".join([*out, "</svg>"])


def key(names):
    spans = (f'<span class="key" style="--c:{c}">{html.escape(n)}</span>' for n, c in zip(names, COLOURS, strict=False))
    return f"<p>{''.join(spans)}</p>"


def table(head, rows):
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td{c}>{html.escape(t)}</td>" for t, c in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def page(report, best_ratio, share):
    """The report as HTML. `best_ratio` gives a case's ratio to its best peer, `share` its share of the machine's peak."""
    names = report["peers"]
    about = "; ".join(report["versions"].values())
    out = ["<!doctype html><html lang=en><meta charset=utf-8><title>Tongtu: measurements</title>",
           f"<style>{STYLE}</style><h1>Measurements</h1>",
           f"<p>{html.escape(report['date'])}, {html.escape(report['cpu'])}, {report['cores']} cores; {html.escape(about)}.</p>"]
    for threads in sorted({case["threads"] for case in report["cases"]}):
        cases = [case for case in report["cases"] if case["threads"] == threads]
        out.append(f"<h2>Our time to each peer's, threads: {threads}</h2><p>Left of 1 Tongtu is faster.</p>{key(names[1:])}")
        out.append(bars([(c["model"], [c["ratios"][n] for n in names[1:]]) for c in cases], names[1:], "", base=1.0))
        each = [("Median time", "median_ms", 1.0, " ms"), ("First start: load, compile, run", "compile_ms", 1.0, " ms"),
                ("Cached start", "cached_start_ms", 1.0, " ms"), ("Peak memory", "peak_rss_bytes", 1e-6, " MB")]
        for title, field, scale, unit in each:
            rows = [(c["model"], [(c["results"][n].get(field) or 0) * scale for n in names]) for c in cases]
            out.append(f"<h2>{title}, threads: {threads}</h2>{key(names)}{bars(rows, names, unit)}")
        rows = []
        for c in cases:
            times = [c["results"][n] for n in names]
            cells = [(c["model"], "")]
            cells += [("failed" if "failed" in t else f"{t['median_ms']:.2f} ± {t['spread']:.0%}", "") for t in times]
            best, of_peak = best_ratio(c), share(c)
            lost = ' class="lost"' if best is not None and best > 1.0 else ""
            cells.append(("-" if best is None else f"{best:.2f}", lost))
            cells.append(("-" if of_peak is None else f"{of_peak:.0%}", ""))
            rows.append(cells)
        head = ["model", *(f"{n}, ms" for n in names), "to the best peer", "of peak"]
        out.append(f"<h2>Table, threads: {threads}</h2>{table(head, rows)}")
    return "\n".join(out) + "\n"
