"""Plain functions: `def handler(event, context)`, on a thread, or `async def handler(event, context)`, on the loop.

What event and context hold, and what may be returned, is described in docs/programs.md.
"""

import asyncio
import binascii
import contextvars
import inspect
import json
import marshal
import sys
import time
from urllib.parse import parse_qsl

from .asgi import encode_value
from .channel import WHOLE_BYTES
from .exchange import Disconnected, Exchange
from .output import EVENT
from .report import last_line, own_traceback
from .threads import Threads

TEXT = (b"content-type", b"text/plain; charset=utf-8")
JSON = (b"content-type", b"application/json")
BYTES = (b"content-type", b"application/octet-stream")
REPLY_KEYS = frozenset(("status", "statusCode", "headers", "body", "isBase64Encoded"))


class Context:
    """What a handler may know beside its event."""

    __slots__ = ("id", "state", "deadline")

    def __init__(self, event, state, deadline):
        # The event's id, as it stands before the lines that the handler prints.
        self.id = event
        # A dict of this process's own, the same for every event: for connections and whatever else took time to make.
        self.state = state
        self.deadline = deadline

    def remaining(self):
        """Seconds until nobody waits for this event any more."""
        return max(0.0, self.deadline - time.monotonic())


class Handler:
    """A plain function, as the worker sees it."""

    websockets = False

    def __init__(self, function, worker, load):
        self.worker = worker
        self.state = {}
        self.timeout = load["event_timeout"]
        self.body_limit = load["body_limit"]
        call = getattr(function, "__call__", None)
        self.is_async = asyncio.iscoroutinefunction(function) or asyncio.iscoroutinefunction(call)
        self.threads = None if self.is_async else Threads(worker.loop)
        try:
            inspect.signature(function).bind(None, None)
            self.function = function
        except TypeError:
            self.function = lambda event, context: function(event)

    def start(self, ready):
        ready(None)

    async def shutdown(self):
        pass

    def request(self, stream, payload):
        head = marshal.loads(payload)
        self.begin(Call(self, stream, head[0], head[-1]), head)

    def message(self, stream, payload):
        event, text = marshal.loads(payload)
        self.begin(Message(self, stream, event, b""), text)

    def begin(self, call, head):
        self.worker.begin(call, call.run(head))


class Call(Exchange):
    """A request on its way through the function."""

    __slots__ = ("handler", "task", "variables")

    def __init__(self, handler, stream, event, whole):
        Exchange.__init__(self, handler.worker, stream, event, whole)
        self.handler = handler
        self.task = None
        # The context of what it does in threads.
        self.variables = None

    async def run(self, head):
        EVENT.set(self.event)
        try:
            event = await self.event_of(head)
            if event is not None:
                await self.answer(await self.call(event))
        except Disconnected:
            pass
        except asyncio.CancelledError:
            self.fail("the program was cancelled", None)
        except BaseException as error:
            text = own_traceback(error)
            if self.started or self.disconnected:
                sys.stderr.write(text)
            self.fail(last_line(error), text)
        finally:
            self.worker.forget(self)

    async def call(self, event):
        handler = self.handler
        context = Context(self.event.decode(), handler.state, time.monotonic() + handler.timeout)
        if handler.is_async:
            return await handler.function(event, context)
        done = self.worker.loop.create_future()
        self.variables = contextvars.copy_context()
        handler.threads.run(self.variables, self.call_in_thread, event, context, done)
        returned = await done
        # A wrapper that isn't async itself may give back what is.
        return await returned if inspect.isawaitable(returned) else returned

    def call_in_thread(self, event, context, done):
        try:
            result = self.handler.function(event, context)
        except BaseException as error:
            # A future takes no StopIteration; nothing else makes a difference to who reads the traceback.
            if isinstance(error, StopIteration):
                error = RuntimeError(f"the handler raised {error!r}").with_traceback(error.__traceback__)
            return settle, done, None, error
        return settle, done, result, None

    async def event_of(self, head):
        id, method, path, raw_path, query, version, scheme, headers, client, server, _ = head
        body = await self.collect()
        if body is None:
            return None
        query = query.decode("latin-1")
        merged = {}
        for name, value in headers:
            name, value = name.decode("latin-1"), value.decode("latin-1")
            if name in merged:
                value = merged[name] + ("; " if name == "cookie" else ", ") + value
            merged[name] = value
        return {
            "type": "http",
            "method": method,
            "path": path,
            "query": dict(parse_qsl(query, keep_blank_values=True)) if query else {},
            "query_string": query,
            "headers": merged,
            "body": body,
            "client": client[0] if client else None,
        }

    async def collect(self):
        """The whole body; None where there is nobody to call the function for."""
        pieces, length, more = [], 0, True
        while more:
            taken = await self.next_piece()
            if taken is None:
                return None
            piece, more = taken
            length += len(piece)
            if length > self.handler.body_limit:
                text = f"a handler gets its body whole, and {self.handler.body_limit} bytes at most\n"
                self.send_whole(413, [TEXT], text.encode())
                return None
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def answer(self, value):
        status, headers = 200, []
        if is_reply(value):
            status, headers, body = status_of(value), headers_of(value.get("headers")), value.get("body")
            if not is_int(status):
                raise TypeError(f"the handler returned the status {status!r}, which is no int")
            is_encoded = value.get("isBase64Encoded") and isinstance(body, str)
            value = binascii.a2b_base64(body) if is_encoded else body
        elif value is None:
            status = 204
        has_type = any(name.lower() == b"content-type" for name, _ in headers)
        if inspect.isgenerator(value) or inspect.isasyncgen(value):
            self.send_head(status, headers if has_type else [*headers, TEXT])
            await self.send_pieces(value)
            return
        body, kind = encode_body(value)
        if kind is not None and not has_type:
            headers.append(kind)
        if len(body) <= WHOLE_BYTES:
            self.send_whole(status, headers, body)
            return
        self.send_head(status, headers)
        await self.send_body(body)
        self.send_end()

    async def send_pieces(self, generator):
        """Sends what a generator yields, as it yields it."""
        variables = contextvars.copy_context() if self.variables is None else self.variables
        done = None
        try:
            if inspect.isasyncgen(generator):
                async for piece in generator:
                    await self.send_piece(piece)
            else:
                loop, threads = self.worker.loop, self.handler.threads or Threads(self.worker.loop)
                while True:
                    done = loop.create_future()
                    threads.run(variables, next_in_thread, generator, done)
                    # An event that is given up leaves the thread to its step.
                    piece = await asyncio.shield(done)
                    if piece is END:
                        break
                    await self.send_piece(piece)
        finally:
            if inspect.isasyncgen(generator):
                await generator.aclose()
            elif done is None or done.done():
                variables.run(generator.close)
            else:
                # A thread is in it.
                done.add_done_callback(lambda _: generator.close(), context=variables)
        self.send_end()

    async def send_piece(self, piece):
        # An empty one is a way to say nothing, and no frame.
        if piece or self.disconnected:
            await self.send_body(piece.encode() if isinstance(piece, str) else piece)

    def disconnect(self, reason):
        Exchange.disconnect(self, reason)
        if self.handler.is_async:
            self.task.cancel()


class Message(Call):
    """A network message on its way through the function: what it returns is the answer."""

    __slots__ = ()

    async def event_of(self, text):
        try:
            message = json.loads(text)
        except ValueError:
            message = None
        return {"type": "aleph.message", "body": text, "message": message}

    async def answer(self, value):
        self.send_value(encode_value(value))


END = object()


def next_in_thread(generator, done):
    try:
        piece = next(generator, END)
    except BaseException as error:
        return settle, done, None, error
    return settle, done, piece, None


def settle(future, result, error):
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def is_reply(value):
    """Whether it is status, headers and body, rather than JSON: what a health check says, {"status": "ok"}, is no reply."""
    if not isinstance(value, dict) or not REPLY_KEYS.issuperset(value):
        return False
    status = status_of(value)
    return status is not None and (len(value) > 1 or is_int(status))


def status_of(reply):
    return reply.get("status", reply.get("statusCode"))


def is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def encode_body(value):
    """A body as bytes, and the header that says what it is."""
    if value is None:
        return b"", None
    if isinstance(value, str):
        return value.encode(), TEXT
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), BYTES
    try:
        return json.dumps(value).encode(), JSON
    except TypeError as error:
        raise TypeError(f"the handler returned a {type(value).__name__} that is no JSON: {error}. It may return a dict "
                        "with status, headers and body, a str, bytes, None, or what JSON has") from None


def headers_of(headers):
    """Pairs of bytes, from a dict (whose values may be lists) or from pairs."""
    if headers is None:
        return []
    pairs = []
    for name, value in headers.items() if isinstance(headers, dict) else headers:
        for one in value if isinstance(value, (list, tuple)) else (value,):
            pairs.append((to_bytes(name), to_bytes(one)))
    return pairs


def to_bytes(text):
    return text if isinstance(text, bytes) else str(text).encode("latin-1")
