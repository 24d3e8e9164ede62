"""What the program prints: each line that it writes on behalf of an event carries that event's id.

Between the program's print, logging and tracebacks, and `engine/output.rs`, which reads them off the pipes. Lines are
written whole, each behind `\\x1e ID \\x1f` (record and unit separator) where an event is known: by a context variable,
which tasks inherit, and asyncio.to_thread. What bypasses sys.stdout and sys.stderr has no id.
"""

import contextvars
import io
import os
import sys
import threading

# The id of the event that is being handled, as bytes.
EVENT = contextvars.ContextVar("polyinit_event", default=b"")

# A line that is longer is cut here. The other side shows less of it.
LINE_LIMIT = 64 << 10


class Lines(io.BufferedIOBase):
    """The binary stream below sys.stdout and sys.stderr."""

    def __init__(self, descriptor, name):
        self.descriptor = descriptor
        self.name = name
        # The beginnings of lines, by event.
        self.begun = {}
        # A signal's handler may print while its own thread does.
        self.lock = threading.RLock()

    mode = "wb"

    def writable(self):
        return True

    def fileno(self):
        return self.descriptor

    def write(self, data):
        data = bytes(data)
        event = EVENT.get()
        with self.lock:
            lines, end, rest = data.rpartition(b"\n")
            begun = self.begun.pop(event, b"")
            if end:
                self.write_lines(event, begun + lines)
                begun = b""
            rest = begun + rest
            if len(rest) > LINE_LIMIT:
                self.write_lines(event, rest)
            elif rest:
                self.begun[event] = rest
        return len(data)

    def write_lines(self, event, lines):
        if event:
            mark = b"\x1e" + event + b"\x1f"
            lines = mark + lines.replace(b"\n", b"\n" + mark)
        view = memoryview(lines + b"\n")
        while view:
            view = view[os.write(self.descriptor, view):]

    def end_line(self, event):
        """Writes what `event` has begun: it is over."""
        with self.lock:
            begun = self.begun.pop(event, b"")
            if begun:
                self.write_lines(event, begun)

    def end_lines(self):
        with self.lock:
            for event in list(self.begun):
                self.end_line(event)


def begin():
    """Has sys.stdout and sys.stderr go through `Lines`."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        if old is None:
            continue
        lines = Lines(descriptor, f"<{name}>")
        stream = io.TextIOWrapper(lines, encoding=old.encoding, errors=old.errors, newline="\n", write_through=True)
        stream.mode = "w"
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
        STREAMS.append(lines)
        # A child that is forked while another thread prints would wait for that thread, which it doesn't have.
        release = lines.lock.release
        os.register_at_fork(before=lines.lock.acquire, after_in_parent=release, after_in_child=release)


STREAMS = []


def end_line(event):
    for lines in STREAMS:
        if lines.begun:
            lines.end_line(event)


def end():
    for lines in STREAMS:
        lines.end_lines()
