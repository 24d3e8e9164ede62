"""ASGI 3.0 applications: HTTP (specification 2.4), network messages, and the lifespan protocol 2.0.

Specification: https://asgi.readthedocs.io/en/stable/specs/
"""

import asyncio
import inspect
import json
import marshal
import sys

from .channel import WHOLE_BYTES, sleep_in
from .exchange import Disconnected, Exchange
from .output import EVENT
from .report import last_line, own_traceback, tells_of_departure

ASGI = {"version": "3.0", "spec_version": "2.4"}
# How long a program may go on after its client is gone, in seconds.
CANCEL_GRACE = 5.0


class Application:
    """An ASGI application, as the worker sees it."""

    websockets = True

    def __init__(self, app, worker, load):
        self.app = app
        self.worker = worker
        self.start_timeout = load["start_timeout"]
        self.lifespan = Lifespan(app, worker.loop)

    def start(self, ready):
        self.lifespan.start(self.worker.begin_task, self.start_timeout, ready)

    async def shutdown(self):
        await self.lifespan.shutdown()

    def request(self, stream, payload):
        event, method, path, raw_path, query, version, scheme, headers, client, server, body = marshal.loads(payload)
        exchange = HttpExchange(self.worker, stream, event, body)
        scope = {
            "type": "http",
            "asgi": ASGI,
            "http_version": version,
            "method": method,
            "scheme": scheme,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": client,
            "server": server,
            "state": self.lifespan.state.copy(),
            "extensions": {"http.response.trailers": {}},
        }
        self.worker.begin(exchange, exchange.run(self.app, scope))

    def message(self, stream, payload):
        event, text = marshal.loads(payload)
        exchange = MessageExchange(self.worker, stream, event, text)
        state = self.lifespan.state.copy()
        scope = {"type": "aleph.message", "asgi": ASGI, "body": text, "state": state}
        self.worker.begin(exchange, exchange.run(self.app, scope))

    def connect(self, stream, payload):
        # Most programs have no WebSockets.
        from . import websocket

        websocket.connect(self, stream, payload)


class HttpExchange(Exchange):
    """A request on its way through the application."""

    __slots__ = ("task", "status", "headers", "trailers")

    def __init__(self, worker, stream, event, whole):
        Exchange.__init__(self, worker, stream, event, whole)
        self.task = None
        self.status = None
        self.headers = None
        # A list while trailers may follow the body.
        self.trailers = None

    async def run(self, app, scope):
        EVENT.set(self.event)
        try:
            returned = await app(scope, self.receive, self.send)
            if returned is not None and inspect.isawaitable(returned):
                await returned
            if not self.finished and not self.disconnected:
                self.incomplete()
        except Disconnected:
            pass
        except asyncio.CancelledError:
            self.fail("the program was cancelled", None)
        except BaseException as error:
            if not self.disconnected:
                self.raised(error)
            elif not tells_of_departure(error):
                # There is nobody to answer, and the log is all that can tell of it.
                sys.stderr.write(own_traceback(error))
        finally:
            self.worker.forget(self)

    def incomplete(self):
        what = "sent only a part of its reply" if self.status is not None else "sent nothing"
        self.fail("the program returned but " + what, None)

    def raised(self, error):
        text = own_traceback(error)
        # Starlette raises again what it has answered with a 500 already. And who has the head of a reply can be told
        # of a failure by its breaking off alone.
        if self.started or self.finished:
            sys.stderr.write(text)
        self.fail(last_line(error), text)

    def disconnect(self, reason):
        Exchange.disconnect(self, reason)
        self.worker.loop.call_later(CANCEL_GRACE, self.task.cancel)

    async def receive(self):
        taken = await self.next_piece()
        if taken is None:
            return {"type": "http.disconnect"}
        piece, more = taken
        return {"type": "http.request", "body": piece, "more_body": more}

    async def send(self, message):
        kind = message["type"]
        if self.disconnected:
            raise Disconnected("the client is gone")
        if kind == "http.response.body":
            if self.status is None:
                raise RuntimeError("http.response.body was sent before http.response.start")
            if self.finished:
                raise RuntimeError("http.response.body was sent after the end of the reply")
            body = message.get("body", b"")
            more = message.get("more_body", False)
            if not self.started:
                if not more and self.trailers is None and len(body) <= WHOLE_BYTES:
                    self.send_whole(self.status, self.headers, body)
                    return
                self.send_head(self.status, self.headers)
            if body:
                await self.send_body(body)
            if not more and self.trailers is None:
                self.send_end()
        elif kind == "http.response.start":
            if self.status is not None:
                raise RuntimeError("http.response.start was sent twice")
            self.status = message["status"]
            self.headers = message.get("headers", ())
            if message.get("trailers", False):
                self.trailers = []
        elif kind == "http.response.trailers" and self.trailers is not None and self.started and not self.finished:
            self.trailers.extend(message.get("headers", ()))
            if not message.get("more_trailers", False):
                self.send_end(self.trailers)
        else:
            raise RuntimeError(f"{kind!r} is no message that can be sent at this point of an HTTP reply")


class MessageExchange(HttpExchange):
    """A network message: the program receives it, and the first thing that it sends is the answer, whatever it is.

    The network's SDK finds the message in the scope, and gives back something to await.
    """

    __slots__ = ()

    async def receive(self):
        if self.whole is not None:
            message = {"type": "aleph.message", "body": self.whole, "more_body": False}
            self.whole = None
            return message
        while not (self.disconnected or self.finished):
            await sleep_in(self.worker.loop, self.waiters)
        return {"type": "http.disconnect"}

    async def send(self, message):
        # A start without a body is what programs send that answer messages in the form of HTTP.
        if self.finished or isinstance(message, dict) and message.get("type") == "http.response.start":
            return
        value = message.get("body", message) if isinstance(message, dict) else message
        self.send_value(encode_value(value))


def encode_value(value):
    """The answer to a message as bytes: text and bytes as they are, everything else as JSON."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (bytes, bytearray)):
        return value
    return json.dumps(value, default=plain).encode()


def plain(value):
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else repr(value)


class Lifespan:
    """Startup before the first event, shutdown after the last, for those who know the protocol."""

    def __init__(self, app, loop):
        self.app = app
        self.loop = loop
        self.state = {}
        self.messages = asyncio.Queue()
        self.started = loop.create_future()
        self.stopped = loop.create_future()
        self.task = None

    async def run(self):
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self.app(scope, self.messages.get, self.send)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            # Before the startup is complete this is how a program says that it doesn't know the protocol.
            if self.started.done() and not self.stopped.done():
                sys.stderr.write("the program's lifespan failed:\n" + own_traceback(error))
        finally:
            settle(self.started, None)
            settle(self.stopped, None)

    async def send(self, message):
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            settle(self.started, None)
        elif kind == "lifespan.startup.failed":
            settle(self.started, message.get("message") or "the program gave no reason")
        elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            settle(self.stopped, message.get("message"))
        else:
            raise RuntimeError(f"{kind!r} is no message of the lifespan protocol")

    def start(self, begin_task, timeout, ready):
        """Has the program start, and calls `ready` with None, or with why it could not."""
        self.messages.put_nowait({"type": "lifespan.startup"})
        late = f"the program's lifespan startup did not complete within {timeout:g} s"
        timer = self.loop.call_later(timeout, settle, self.started, late)

        def decided(started):
            timer.cancel()
            reason = started.result()
            if reason is not None and reason is not late:
                reason = f"the program's lifespan startup failed: {reason.strip()}"
            ready(reason)

        self.task = begin_task(self.run())
        # Most have nothing to wait for.
        if self.started.done():
            decided(self.started)
        else:
            self.started.add_done_callback(decided)

    async def shutdown(self):
        if self.task is None or self.task.done():
            return
        self.messages.put_nowait({"type": "lifespan.shutdown"})
        reason = await self.stopped
        if reason:
            sys.stderr.write(f"the program's lifespan shutdown failed: {reason.strip()}\n")


def settle(future, result):
    if not future.done():
        future.set_result(result)
