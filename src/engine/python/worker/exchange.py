"""One HTTP event on its way through the program: the pieces of its body, its reply, and the windows of both.

What is common to every interface. All of it belongs to the loop's thread.
"""

import marshal
from collections import deque

from .channel import (END, FAILED, HEAD, LENGTH, PAYLOAD_BYTES, PIECE, PIECE_BYTES, REPLY, TAKEN, TELL_BYTES, VALUE,
                      WINDOW_BYTES, sleep_in, wake)
from .report import fault


class Disconnected(OSError):
    """Raised where a program sends something and nobody waits for it any more (ASGI HTTP 2.4)."""


class Exchange:
    """An event: `whole` is its body where that came in one piece, None where pieces follow."""

    __slots__ = ("worker", "stream", "event", "waiters", "whole", "pieces", "body_ended", "disconnected", "started",
                 "finished", "credit", "taken")

    def __init__(self, worker, stream, event, whole):
        self.worker = worker
        self.stream = stream
        # The event's id, as bytes.
        self.event = event
        self.waiters = []
        self.whole = whole
        self.pieces = None if whole is not None else deque()
        self.body_ended = whole is not None
        self.disconnected = False
        self.started = False
        self.finished = False
        self.credit = WINDOW_BYTES
        # Bytes of the body that were taken, and that the other side has not been told of yet.
        self.taken = 0

    # What comes in.

    def take_piece(self, kind, piece):
        """The channel has brought a piece of the body."""
        if self.pieces is not None:
            self.pieces.append(piece)
            wake(self.waiters)

    def end_body(self):
        self.body_ended = True
        wake(self.waiters)

    def add_credit(self, count):
        self.credit += count
        wake(self.waiters)

    def disconnect(self, reason):
        """Nobody waits for the reply any more."""
        self.disconnected = True
        wake(self.waiters)

    def stop(self):
        """The worker is to end, once this event is through."""

    async def next_piece(self):
        """The next piece of the body and whether more may follow; None once the client is gone."""
        whole = self.whole
        if whole is not None:
            self.whole = None
            return whole, False
        while True:
            if self.pieces:
                piece = self.pieces.popleft()
                self.took(len(piece))
                more = bool(self.pieces) or not self.body_ended
                if not more:
                    self.pieces = None
                return piece, more
            if self.disconnected or self.finished:
                return None
            if self.pieces is not None and self.body_ended:
                self.pieces = None
                return b"", False
            await sleep_in(self.worker.loop, self.waiters)

    def took(self, count):
        """So many bytes more may be sent. The other side has room enough to be told of them in larger numbers."""
        self.taken += count
        if self.taken >= TELL_BYTES:
            self.worker.channel.write(TAKEN, self.stream, LENGTH.pack(self.taken))
            self.taken = 0

    # What goes out.

    def send_whole(self, status, headers, body):
        # The head is encoded first: what can't be encoded is raised where the program can see it.
        payload = encode_head(status, headers, body)
        self.finished = True
        self.worker.channel.write(REPLY, self.stream, payload)
        if self.waiters:
            wake(self.waiters)

    def send_head(self, status, headers):
        payload = encode_head(status, headers, b"")
        self.started = True
        self.worker.channel.write(HEAD, self.stream, payload)

    async def send_body(self, body, kind=PIECE):
        """Sends a part of the body in pieces, as fast as it is taken; the last one as a frame of `kind`."""
        worker = self.worker
        channel = worker.channel
        if self.disconnected:
            raise Disconnected("the client is gone")
        if kind == PIECE and type(body) is bytes and len(body) <= min(self.credit, PIECE_BYTES):
            self.credit -= len(body)
            channel.write_piece(self.stream, body)
            if channel.writing:
                await channel.room()
            return
        view = memoryview(body).cast("B")
        position, end = 0, len(view)
        while position < end:
            piece = view[position:position + PIECE_BYTES]
            while self.credit < len(piece) and not self.disconnected:
                await sleep_in(worker.loop, self.waiters)
            if self.disconnected:
                raise Disconnected("the client is gone")
            self.credit -= len(piece)
            position += len(piece)
            channel.write(PIECE if position < end else kind, self.stream, bytes(piece))
            if channel.writing:
                await channel.room()

    def send_end(self, trailers=()):
        self.finished = True
        payload = encode_head(200, trailers, b"") if trailers else b""
        self.worker.channel.write(END, self.stream, payload)
        wake(self.waiters)

    def send_value(self, value):
        """Answers a message."""
        if len(value) > PAYLOAD_BYTES:
            raise ValueError(f"the answer to the message has {len(value)} bytes, where {PAYLOAD_BYTES} is the limit")
        self.finished = True
        self.worker.channel.write(VALUE, self.stream, value)
        wake(self.waiters)

    def fail(self, message, text):
        if not self.finished:
            self.finished = True
            self.worker.channel.write(FAILED, self.stream, fault(message, text))
            wake(self.waiters)


def encode_head(status, headers, body):
    try:
        return marshal.dumps((status, headers, body), 2)
    except ValueError:
        headers = [tuple(header) for header in headers]
        return marshal.dumps((int(status), headers, bytes(body)), 2)
