#!/usr/bin/env python3
"""Runs a command on a terminal of its own, sends ^C once it has drawn something, and prints what the terminal got and the exit code."""

import os
import pty
import sys

pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
seen = b""
while b"left" not in seen:
    seen += os.read(terminal, 4096)
os.write(terminal, b"\x03")
try:
    while more := os.read(terminal, 4096):
        seen += more
except OSError:
    pass  # the other side is closed
_, status = os.waitpid(pid, 0)
sys.stdout.buffer.write(seen)
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
