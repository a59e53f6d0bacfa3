"""Runs a full-screen program in a terminal of 80x24 and obeys lines on stdin:

see TEXT    waits until the screen shows it, prints "seen"
key X       types it
end         waits for the program's end, prints its status

A screen larger than the terminal is a failure.
"""
import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time

pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.execvp(sys.argv[1], sys.argv[1:])
# The child may look before it has set its own.
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
everything = ""


def fail(text):
    print(f"{text}\n{everything[-4000:]!r}", flush=True)
    os.kill(pid, 9)
    sys.exit(1)


def read(seconds):
    """More output; False at the end of the program."""
    global everything
    if not select.select([terminal], [], [], seconds)[0]:
        return True
    try:
        data = os.read(terminal, 65536)
    except OSError:
        return False
    everything += data.decode()
    return bool(data)


def screen():
    """The last whole frame: from home to "clear what is below"."""
    frames = re.findall(r"\x1b\[H((?:(?!\x1b\[H).)*?)\x1b\[J", everything, re.S)
    if not frames:
        return ""
    lines = [re.sub(r"\x1b\[[0-9?]*[a-zA-Z]", "", line) for line in frames[-1].replace("\r", "").split("\n")]
    if len(lines) > 24 or any(len(line) > 80 for line in lines):
        fail(f"{len(lines)} lines, the longest of {max(map(len, lines))} columns")
    return "\n".join(lines)


for command in sys.stdin:
    word, _, text = command.rstrip("\n").partition(" ")
    if word == "see":
        limit = time.monotonic() + 20
        while text not in screen():
            if time.monotonic() > limit or not read(1):
                fail(f"not seen: {text}")
        print("seen", flush=True)
    elif word == "key":
        os.write(terminal, text.encode())
    elif word == "end":
        while read(20):
            pass
        _, status = os.waitpid(pid, 0)
        if "\x1b[?1049l" not in everything:
            fail("the terminal was not given back")
        print("ended", os.waitstatus_to_exitcode(status), flush=True)
        break
