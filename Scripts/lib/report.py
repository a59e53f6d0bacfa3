"""Rows, as a table and as a page with plots."""

import html
import json
import math
import platform
import re
import subprocess

NAMES = {"spread": "kernel", "packed": "kernel, one core", "polling": "kernel, polling", "machnet": "Machnet"}
COLOURS = {"spread": "#4477aa", "packed": "#66ccee", "polling": "#228833", "machnet": "#cc3311"}


def machine():
    model, count = "unknown processor", 0
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("processor"):
                count += 1
            elif line.startswith(("model name", "Model")):
                model = line.split(":", 1)[1].strip()
    virtual = "virtual machine, " if "hypervisor" in open("/proc/cpuinfo").read() else ""
    return f"{model}, {virtual}{count} cores, Linux {platform.release()}"


def figure(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def table(rows):
    head = ["workload", "topology", "placement", "metric", "kernel", "kernel best", "machnet", "ratio", "ratio best", "spread"]
    lines = [head]
    for row in rows:
        lines.append([row["workload"], row["topology"], row["placement"], f"{row['metric']} ({row['unit']}, {row['better']} is better)",
                      figure(row["kernel"]), figure(row["kernel_best"]), figure(row["machnet"]),
                      f"{row['ratio']:.3g}", f"{row['ratio_best']:.3g}", f"{row['spread'] * 100:.0f}%"])
    return aligned(lines, 4) + "\n\n" + "\n".join(
        f"{row['workload']} {row['topology']}, {row['metric']}: {row['verdict']}" for row in rows)


def aligned(lines, texts):
    """Columns, the first `texts` of them to the left, the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) if i < texts else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))).rstrip()
                     for line in lines)


def gnuplot(script, number):
    """The SVG that gnuplot draws. Several share a page: their ids must not."""
    done = subprocess.run(["gnuplot"], input=script, capture_output=True, text=True, check=True)
    return re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>", "", done.stdout, flags=re.S).replace("gnuplot_", f"p{number}_")


def quoted(text):
    """A string for gnuplot."""
    return "'" + text.replace("'", "''") + "'"


def ticks(top):
    """From 0 to `top` in round steps, for gnuplot, whose own formats make 1k of 1,200 and of 1,400."""
    if top <= 0:
        return "0"
    power = 10 ** math.floor(math.log10(top / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if top / (power * factor) <= 7)
    unit, letter = next(((unit, letter) for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if top >= unit), (1, ""))
    return ", ".join(f"'{i * step / unit:g}{letter if i else ''}' {i * step:g}" for i in range(int(top / step * 1.12) + 1))


def bars(row, number):
    """The medians of one row."""
    values = [("kernel", row["kernel"], 0x4477AA), ("kernel best", row["kernel_best"], 0x4477AA), ("Machnet", row["machnet"], 0xCC3311)]
    data = "".join(f'"{name}" {value} {colour} "{figure(value)}"\n' for name, value, colour in values) + "e\n"
    return gnuplot(f"""set terminal svg size 420,260 font 'sans,11' noenhanced
set title {quoted(f"{row['workload']}, {row['topology']}: {row['metric']}")}
set ylabel {quoted(row["unit"])}
set yrange [0:*]
set offsets 0, 0, graph 0.12, 0
set boxwidth 0.6
set style fill solid 0.8
set ytics ({ticks(max(value for _, value, _ in values))})
unset key
plot '-' using 0:2:3:xtic(1) with boxes lc rgb variable, '' using 0:2:4 with labels offset 0,0.6
{data}{data}""", number)


def nines(share):
    return -math.log10(1 - share)


def lines(drawn, number):
    """A figure of curves: a distribution in nines, or values over a range, both axes logarithmic (shares are not)."""
    is_distribution = drawn["kind"] == "distribution"
    is_share = drawn["y_label"].startswith("%")
    series = [(one, [(y, nines(x)) for x, y in one["points"]] if is_distribution else one["points"]) for one in drawn["series"]]
    series = [(one, points) for one, points in series if points]
    if not series:
        return f"<p>{html.escape(drawn['title'])}: nothing was measured</p>"
    ticks = ", ".join(f"'{100 * share:.4g}%%' {nines(share):.6f}" for share in (0.01, 0.5, 0.9, 0.99, 0.999, 0.9999))
    values = "set yrange [0:*]\nset format x '%.0s%c'" if is_share else "set logscale y\nset format '%.0s%c'"
    axes = f"set ytics ({ticks})\nset yrange [0:4.1]\nset format x '%g'" if is_distribution else values
    style = "lines lw 2" if is_distribution else "linespoints lw 2 pt 7 ps 0.5"
    plots = ", ".join(f"'-' with {style} lc rgb '{COLOURS[one['column']]}' dt {2 if one.get('suffix') == 'p99' else 1} title {quoted(one['name'])}"
                      for one, _ in series)
    data = "".join("".join(f"{x} {y}\n" for x, y in points) + "e\n" for _, points in series)
    return gnuplot(f"""set terminal svg size 640,400 font 'sans,11' noenhanced
set title {quoted(drawn["title"])}
set xlabel {quoted(drawn["x_label"])} offset 0,0.8
set ylabel {quoted(drawn["y_label"])}
set logscale x
{axes}
set grid
set key below
plot {plots}
{data}""", number)


def numbers(drawn):
    """A figure's values as text: of a distribution, some."""
    if drawn["kind"] == "distribution":
        shares = [0.01, 0.5, 0.9, 0.99, 0.999, 0.9999]
        found = [["", *(f"p{100 * share:.4g}" for share in shares)]]
        for one in drawn["series"]:
            # The curve ends where too few values are left.
            at = {share: next((y for x, y in one["points"] if x >= share - 1e-9), None) for share in shares}
            found.append([one["name"], *("-" if at[share] is None else figure(at[share]) for share in shares)])
        return aligned(found, 1)
    found = [["", drawn["x_label"], drawn["y_label"]]]
    for one in drawn["series"]:
        found += [[one["name"], figure(x), figure(y)] for x, y in one["points"]]
    return aligned(found, 1)


def page(rows, figures, command):
    drawings = [bars(row, number) for number, row in enumerate(rows)]
    curves = [f"<figure>{lines(one, len(rows) + number)}<details><summary>{html.escape(one['title'])}, in figures</summary>"
              f"<pre>{html.escape(numbers(one))}</pre></details></figure>" for number, one in enumerate(figures)]
    # The data behind the plots, for whoever wants to draw them anew; "<" would end the element.
    data = json.dumps({"rows": rows, "figures": figures}).replace("<", "\\u003c")
    return f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Machnet against the kernel</title>
<style>body {{ font: 15px sans-serif; max-width: 84em; margin: 2em auto; padding: 0 1em }} pre {{ overflow-x: auto }}
figure {{ display: inline-block; margin: 1em; vertical-align: top }} svg {{ max-width: 100%; height: auto }} summary {{ color: #555; font-size: 13px }}</style>
<h1>Machnet against the kernel</h1>
<p>{html.escape(machine())}. Medians of {rows[0]["rounds"] if rows else 0} alternating rounds; spread is the interquartile range over the median, of the
more scattered side. Curves are medians of at most 3 rounds;
distributions are those of all rounds, up to where ten values are left. <code>{html.escape(command)}</code></p>
<pre>{html.escape(table(rows))}</pre>
{"".join(f"<figure>{drawing}</figure>" for drawing in drawings)}
{"".join(curves)}
<script type="application/json" id="data">{data}</script>
</html>
"""
