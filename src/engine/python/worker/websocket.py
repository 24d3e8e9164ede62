"""ASGI 3.0 applications: WebSocket (specification 2.4), with the denial response extension.

The handshake, frames, masks, pings and limits of RFC 6455 are the other side's (`engine/worker/websocket.rs`). Here a
message is some PIECE frames, and a TEXT or BINARY one with the last piece.
"""

import marshal
import sys
from collections import deque

from .asgi import ASGI, HttpExchange
from .channel import ACCEPT, BINARY, CLOSE, PIECE, TEXT, sleep_in, wake
from .exchange import Disconnected, encode_head
from .report import last_line, own_traceback

# Close codes of RFC 6455, section 7.4.1, and of its registry.
NORMAL, NO_STATUS, ABNORMAL, INTERNAL_ERROR, SERVICE_RESTART = 1000, 1005, 1006, 1011, 1012

CONNECTING, DENYING, OPEN, CLOSED = range(4)
PROTOCOL = b"sec-websocket-protocol"


def connect(application, stream, payload):
    """A client asks for a WebSocket."""
    event, _, path, raw_path, query, version, scheme, headers, client, server, _ = marshal.loads(payload)
    worker = application.worker
    exchange = SocketExchange(worker, stream, event)
    offered = b",".join(value for name, value in headers if name == PROTOCOL).decode("latin-1")
    scope = {
        "type": "websocket",
        "asgi": ASGI,
        "http_version": version,
        "scheme": "wss" if scheme == "https" else "ws",
        "path": path,
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": client,
        "server": server,
        "subprotocols": [word for word in map(str.strip, offered.split(",")) if word],
        "state": application.lifespan.state.copy(),
        "extensions": {"websocket.http.response": {}},
    }
    worker.begin(exchange, exchange.run(application.app, scope))


class SocketExchange(HttpExchange):
    """A WebSocket on its way through the application; an HTTP exchange where the application denies it."""

    __slots__ = ("state", "connect_received", "messages", "partial", "owed", "code", "reason")

    def __init__(self, worker, stream, event):
        HttpExchange.__init__(self, worker, stream, event, b"")
        self.state = CONNECTING
        self.connect_received = False
        # Whole messages, each with as many bytes as the other side has not been told of yet.
        self.messages = deque()
        # The pieces of the message that is arriving, and the same of them.
        self.partial = []
        self.owed = 0
        # Why it ended, once it has.
        self.code = None
        self.reason = ""

    # What comes in.

    def take_piece(self, kind, piece):
        if kind == CLOSE:
            code = int.from_bytes(piece[:2], "little") if piece else NO_STATUS
            self.lost(code, piece[2:].decode("utf-8", "replace"))
            return
        self.partial.append(piece)
        self.owed += len(piece)
        if kind != PIECE:
            whole = self.partial[0] if len(self.partial) == 1 else b"".join(self.partial)
            self.messages.append((kind, whole, self.owed))
            self.partial, self.owed = [], 0
            wake(self.waiters)
        else:
            self.settle_partial()

    def settle_partial(self):
        # A message may be larger than the window: as long as the application waits for it, it comes.
        if not self.messages:
            self.took(self.owed)
            self.owed = 0

    def disconnect(self, reason):
        self.lost(ABNORMAL, "")

    def lost(self, code, reason):
        """The client has closed, or is gone."""
        if self.code is None:
            self.code, self.reason = code, reason
        self.state = CLOSED
        HttpExchange.disconnect(self, reason)

    def stop(self):
        if self.state == OPEN:
            self.close(SERVICE_RESTART, "")
            self.lost(SERVICE_RESTART, "")

    async def receive(self):
        if not self.connect_received:
            self.connect_received = True
            return {"type": "websocket.connect"}
        while True:
            if self.messages:
                kind, whole, owed = self.messages.popleft()
                self.took(owed)
                self.settle_partial()
                if kind == TEXT:
                    return {"type": "websocket.receive", "text": whole.decode(), "bytes": None}
                return {"type": "websocket.receive", "bytes": whole, "text": None}
            if self.code is not None:
                return {"type": "websocket.disconnect", "code": self.code, "reason": self.reason}
            await sleep_in(self.worker.loop, self.waiters)

    # What goes out.

    async def send(self, message):
        kind = message["type"]
        if self.disconnected:
            raise Disconnected("the client is gone")
        if self.state == OPEN:
            if kind == "websocket.send":
                await self.send_message(message)
                return
            if kind == "websocket.close":
                code = message.get("code", NORMAL)
                self.close(NORMAL if code is None else code, message.get("reason") or "")
                return
        elif self.state == CONNECTING:
            if kind == "websocket.accept":
                self.accept(message)
                return
            if kind == "websocket.close":
                self.state, self.code = CLOSED, ABNORMAL
                self.send_whole(403, [], b"")
                return
            if kind == "websocket.http.response.start":
                self.state, self.code = DENYING, ABNORMAL
                self.status, self.headers = message["status"], message.get("headers", ())
                return
        elif self.state == DENYING and kind == "websocket.http.response.body" and not self.finished:
            await HttpExchange.send(self, {**message, "type": "http.response.body"})
            return
        state = ("before it is accepted", "while it is denied", "while it is open", "after its close")[self.state]
        raise RuntimeError(f"{kind!r} can't be sent to a WebSocket {state}")

    def accept(self, message):
        headers = [tuple(header) for header in message.get("headers") or ()]
        subprotocol = message.get("subprotocol")
        if any(name.lower() == PROTOCOL for name, _ in headers):
            raise RuntimeError("the subprotocol of websocket.accept goes into \"subprotocol\", not into its headers")
        if subprotocol is not None:
            headers.append((PROTOCOL, subprotocol.encode("latin-1")))
        payload = encode_head(101, headers, b"")
        self.state = OPEN
        self.worker.channel.write(ACCEPT, self.stream, payload)

    async def send_message(self, message):
        text, data = message.get("text"), message.get("bytes")
        if (text is None) == (data is None):
            raise RuntimeError("websocket.send needs one of \"text\" and \"bytes\"")
        kind, whole = (BINARY, data) if text is None else (TEXT, text.encode())
        if len(whole) == 0:
            self.worker.channel.write(kind, self.stream)
        else:
            await self.send_body(whole, kind)

    def close(self, code, reason):
        payload = code.to_bytes(2, "little") + cut(reason.encode())
        self.state, self.code, self.reason = CLOSED, code, reason
        self.finished = True
        self.worker.channel.write(CLOSE, self.stream, payload)
        wake(self.waiters)

    # How it ends.

    def incomplete(self):
        if self.state == OPEN:
            self.close(NORMAL, "")
        elif self.state == CONNECTING:
            self.fail("the program returned without an answer to websocket.connect", None)
        elif not self.finished:
            HttpExchange.incomplete(self)

    def raised(self, error):
        if self.state == OPEN:
            sys.stderr.write(own_traceback(error))
            self.close(INTERNAL_ERROR, "")
        elif self.finished:
            sys.stderr.write(own_traceback(error))
        else:
            self.fail(last_line(error), own_traceback(error))


def cut(reason):
    """A reason fits a control frame beside its code: 123 bytes, and no half letter at the end."""
    return reason[:123].decode("utf-8", "ignore").encode()
