"""Rows, as a table and as a page with plots."""

import html
import platform
import re
import subprocess


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
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) if i < 4 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))).rstrip()
                     for line in lines)


def plot(row):
    """An SVG with the medians of one row, drawn by gnuplot."""
    bars = [("kernel", row["kernel"]), ("kernel best", row["kernel_best"]), ("machnet", row["machnet"])]
    script = f"""set terminal svg size 420,260 font 'sans,11'
set title '{row["workload"]}, {row["topology"]}: {row["metric"]}'
set ylabel '{row["unit"]}'
set yrange [0:*]
set boxwidth 0.6
set style fill solid 0.8
unset key
plot '-' using 0:2:xtic(1) with boxes lc rgb '#4477aa', '' using 0:2:(sprintf('%.4g', $2)) with labels offset 0,0.6
"""
    data = "".join(f'"{name}" {value}\n' for name, value in bars) + "e\n"
    done = subprocess.run(["gnuplot"], input=script + data + data, capture_output=True, text=True, check=True)
    # Several SVGs share a page: their ids must not.
    return re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>", "", done.stdout, flags=re.S).replace("gnuplot_", f"p{id(row)}_")


def page(rows, command):
    return f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Machnet against the kernel</title>
<style>body {{ font: 15px sans-serif; max-width: 70em; margin: 2em auto }} pre {{ overflow-x: auto }} figure {{ display: inline-block; margin: 1em }}</style>
<h1>Machnet against the kernel</h1>
<p>{html.escape(machine())}. Medians of {rows[0]["rounds"] if rows else 0} alternating rounds; spread is the interquartile range over the median, of the
more scattered side. <code>{html.escape(command)}</code></p>
<pre>{html.escape(table(rows))}</pre>
{"".join(f"<figure>{plot(row)}</figure>" for row in rows)}
</html>
"""
