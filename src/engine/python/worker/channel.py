"""Frames in and out of the worker's socket, in batches: one read and one write for a turn of the loop."""

import struct
import sys
import traceback

from .report import fault, last_line

# The kinds of frames, as in frame.rs: to the worker,
LOAD, REQUEST, MESSAGE, CANCEL, STOP, PING, CONNECT = 1, 2, 3, 4, 5, 6, 7
# both ways,
PIECE, END, TAKEN, TEXT, BINARY, CLOSE = 16, 17, 18, 19, 20, 21
# and from the worker.
READY, REFUSED, REPLY, HEAD, VALUE, FAILED, PONG, ACCEPT = 32, 33, 34, 35, 36, 37, 38, 39

HEADER = struct.Struct("<IIB")
LENGTH = struct.Struct("<I")
READ_BYTES = 256 << 10
FIRST_BYTES = 64 << 10
# As in frame.rs: the largest piece of a body, and how many bytes of one may be on their way.
PIECE_BYTES = 128 << 10
WINDOW_BYTES = 512 << 10
# As in frame.rs: the largest payload, which the answer to a message may be.
PAYLOAD_BYTES = 16 << 20
# So much is taken before the other side is told of it.
TELL_BYTES = WINDOW_BYTES // 4
# A reply up to this goes as one frame.
WHOLE_BYTES = 1 << 20
# What waits to be written before programs are made to wait, too.
BACKLOG_BYTES = 4 << 20


class Channel:
    """The worker's end of the socket. All but `read_first` belongs to the loop's thread."""

    def __init__(self, sock):
        self.sock = sock
        # Read into again and again: a new buffer of this size for each read would be mapped and unmapped each time.
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.rest = b""
        self.out = []
        # The last piece of a body in `out`: its stream, where its frame begins and ends there, its length.
        self.piece = (0, 0, 0, 0)
        self.unsent = b""
        self.loop = None
        self.reading = False
        self.writing = False
        self.waiters = []

    def attach(self, loop, on_frame, on_end):
        self.loop = loop
        self.on_frame = on_frame
        self.on_end = on_end
        self.sock.setblocking(False)
        loop.add_reader(self.sock.fileno(), self.readable)

    def read_first(self):
        """Blocks for the first frame: the program to load."""
        data = b""
        while True:
            if len(data) >= HEADER.size:
                length, _, kind = HEADER.unpack_from(data)
                if len(data) >= HEADER.size + length:
                    self.rest = data[HEADER.size + length:]
                    return kind, data[HEADER.size:HEADER.size + length]
            # A few kilobytes: what is larger is mapped and unmapped each time.
            piece = self.sock.recv(FIRST_BYTES)
            if not piece:
                sys.exit(0)
            data += piece

    def readable(self):
        try:
            count = self.sock.recv_into(self.buffer)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self.loop.remove_reader(self.sock.fileno())
            self.on_end()
            return
        data = self.buffer[:count]
        if self.rest:
            data = memoryview(b"".join((self.rest, data)))
            self.rest = b""
        self.parse(data)

    def parse(self, data):
        """Gives every whole frame away, and then sends in one write what that led to."""
        self.reading = True
        try:
            self.deal(data)
        finally:
            self.reading = False
            if self.out:
                self.flush()

    def deal(self, data):
        position, end = 0, len(data)
        on_frame, unpack, size = self.on_frame, HEADER.unpack_from, HEADER.size
        while end - position >= size:
            length, stream, kind = unpack(data, position)
            begin = position + size
            if end - begin < length:
                break
            position = begin + length
            try:
                on_frame(kind, stream, data[begin:position])
            except Exception as error:
                # Ours, not the program's; one that would take the other events with it if it went on from here.
                self.write(FAILED, stream, fault(last_line(error), traceback.format_exc()))
        if position < end:
            self.rest = bytes(data[position:])

    def write(self, kind, stream, payload=b""):
        if not self.out and not self.reading:
            self.loop.call_soon(self.flush)
        self.out.append(HEADER.pack(len(payload), stream, kind))
        if payload:
            self.out.append(payload)

    def write_piece(self, stream, piece):
        """As `write` of a PIECE. One that follows another of the same body goes in the same frame."""
        before, at, end, length = self.piece
        length += len(piece)
        if before == stream and end == len(self.out) and length <= PIECE_BYTES:
            self.out[at] = HEADER.pack(length, stream, PIECE)
            self.out.append(piece)
        else:
            self.write(PIECE, stream, piece)
            at, length = len(self.out) - 2, len(piece)
        self.piece = stream, at, len(self.out), length

    def flush(self):
        if self.writing or not self.out:
            return
        data = b"".join(self.out) if not self.unsent else b"".join([self.unsent, *self.out])
        self.out.clear()
        self.piece = (0, 0, 0, 0)
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return
        if sent < len(data):
            self.unsent = memoryview(data)[sent:]
            self.writing = True
            self.loop.add_writer(self.sock.fileno(), self.writable)

    def writable(self):
        try:
            sent = self.sock.send(self.unsent)
        except BlockingIOError:
            return
        except OSError:
            self.unsent = b""
            self.loop.remove_writer(self.sock.fileno())
            return
        self.unsent = self.unsent[sent:]
        if not self.unsent:
            self.unsent = b""
            self.writing = False
            self.loop.remove_writer(self.sock.fileno())
            wake(self.waiters)
            if self.out:
                self.flush()

    def crowded(self):
        return self.writing and len(self.unsent) + sum(map(len, self.out)) > BACKLOG_BYTES

    async def room(self):
        """Waits until what is to be written is little enough for more."""
        while self.crowded():
            await sleep_in(self.loop, self.waiters)

    def flush_blocking(self):
        self.sock.setblocking(True)
        try:
            self.sock.sendall(b"".join([self.unsent, *self.out]))
        except OSError:
            pass


def wake(waiters):
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()


async def sleep_in(loop, waiters):
    waiter = loop.create_future()
    waiters.append(waiter)
    await waiter
