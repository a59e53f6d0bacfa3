"""Opens a page in headless Chromium and prints as JSON what is to be seen there: `look_at_page.py PAGE.html COLOUR ...`.

figures   of each SVG in a <figure>: its texts, width and height as laid out, and its lines: colour and length
pixels    of each colour given as #rrggbb, how many pixels of a screenshot have it
"""
import html
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import zlib

# What the browser made of it, by its own geometry.
PROBE = """<pre id="seen"></pre><script>
document.getElementById("seen").textContent = JSON.stringify({
  height: document.documentElement.scrollHeight,
  figures: [...document.querySelectorAll("figure svg")].map(svg => {
    const box = svg.getBoundingClientRect();
    return { width: box.width, height: box.height,
      texts: [...svg.querySelectorAll("text")].map(text => text.textContent.trim()),
      lines: [...svg.querySelectorAll("path, polyline, polygon")].map(line => (
        { colour: getComputedStyle(line).stroke, length: line.getTotalLength() })) };
  }) });
</script>"""


def chromium(directory, *options):
    # A root's Chromium has no sandbox; the page is our own.
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
               f"--user-data-dir={directory}/profile", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        sys.exit(f"chromium: {done.returncode}\n{done.stderr}")
    return done.stdout


def pixels(path):
    """(width, height, rows of RGB bytes) of a PNG with 8 bits a channel, not interlaced."""
    data = open(path, "rb").read()
    at, packed = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", body)
            if depth != 8 or colour not in (2, 6) or interlaced:
                sys.exit("a PNG of an unknown kind")
        elif kind == b"IDAT":
            packed += body
        at += length + 12
    size = 4 if colour == 6 else 3
    raw, stride, rows, above = zlib.decompress(packed), width * size, [], bytes(width * size)
    for row in range(height):
        start = row * (stride + 1)
        kind, line = raw[start], bytearray(raw[start + 1:start + 1 + stride])
        if kind == 1:
            for i in range(size, stride):
                line[i] = (line[i] + line[i - size]) & 255
        elif kind == 2:
            line = bytearray((a + b) & 255 for a, b in zip(line, above))
        elif kind == 3:
            for i in range(stride):
                line[i] = (line[i] + ((line[i - size] if i >= size else 0) + above[i]) // 2) & 255
        elif kind == 4:
            for i in range(stride):
                a, b, c = (line[i - size] if i >= size else 0), above[i], (above[i - size] if i >= size else 0)
                pa, pb, pc = abs(b - c), abs(a - c), abs(a + b - 2 * c)
                line[i] = (line[i] + (a if pa <= pb and pa <= pc else b if pb <= pc else c)) & 255
        rows.append(bytes(line))
        above = line
    return size, rows


def main():
    page, colours = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory() as directory:
        probed = os.path.join(directory, "page.html")
        with open(page) as source, open(probed, "w") as file:
            file.write(source.read().replace("</html>", PROBE + "</html>"))
        found = re.search(r'<pre id="seen">(.*?)</pre>', chromium(directory, "--dump-dom", "--window-size=1000,800", f"file://{probed}"), re.S)
        seen = json.loads(html.unescape(found[1]))
        shot = os.environ.get("SCREENSHOT", os.path.join(directory, "page.png"))
        chromium(directory, f"--screenshot={shot}", f"--window-size=1000,{seen['height']}", f"file://{os.path.abspath(page)}")
        size, rows = pixels(shot)
    counted = {}
    for row in rows:
        for i in range(0, len(row), size):
            pixel = row[i:i + 3]
            counted[pixel] = counted.get(pixel, 0) + 1
    print(json.dumps({"figures": seen["figures"], "pixels": {colour: counted.get(bytes.fromhex(colour[1:]), 0) for colour in colours}}))


main()
