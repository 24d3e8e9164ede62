"""WSGI applications (PEP 3333), each event on a thread of its own.

A reply whose iterable is a list goes as one frame, with a `content-length`; any other is sent piece by piece, as fast as the client
takes it.
"""

import contextvars
import io
import marshal
import sys
from urllib.parse import unquote_to_bytes

from .channel import WHOLE_BYTES
from .exchange import Disconnected, Exchange
from .output import EVENT
from .report import last_line, own_traceback
from .threads import Threads

# A connection's affair, not the application's (RFC 9110, section 7.6.1; PEP 3333).
HOP_BY_HOP = frozenset(("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailers",
                        "transfer-encoding", "upgrade"))


class Application:
    """A WSGI application, as the worker sees it."""

    websockets = False

    def __init__(self, app, worker, load):
        self.app = app
        self.worker = worker
        self.threads = Threads(worker.loop)

    def start(self, ready):
        ready(None)

    async def shutdown(self):
        pass

    def request(self, stream, payload):
        event, method, path, raw_path, query, version, scheme, headers, client, server, body = marshal.loads(payload)
        exchange = Exchange(self.worker, stream, event, body)
        self.worker.exchanges[stream] = exchange
        environ = environ_of(method, raw_path, query, version, scheme, headers, client, server)
        call = Call(self, exchange, environ)
        environ["wsgi.input"] = io.BytesIO(body) if body is not None else io.BufferedReader(Input(call), 64 << 10)
        variables = contextvars.copy_context()
        variables.run(EVENT.set, event)
        self.threads.run(variables, call.run)

    def message(self, stream, payload):
        event, _ = marshal.loads(payload)
        exchange = Exchange(self.worker, stream, event, b"")
        exchange.fail("a WSGI application takes no network messages: give them to a component of their own", None)


def environ_of(method, raw_path, query, version, scheme, headers, client, server):
    """The environ of PEP 3333, of which bytes are text in latin-1."""
    path = unquote_to_bytes(raw_path).decode("latin-1")
    raw_path = raw_path.decode("latin-1")
    query = query.decode("latin-1")
    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REQUEST_URI": f"{raw_path}?{query}" if query else raw_path,
        "SERVER_PROTOCOL": f"HTTP/{version}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        # wsgi.input ends where the body ends, whether its length was told or not.
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": FileWrapper,
    }
    for name, value in headers:
        # With an underscore it would pass for the one with a hyphen, which somebody on the way may have checked.
        if b"_" in name:
            continue
        name = name.decode("latin-1").upper().replace("-", "_")
        value = value.decode("latin-1")
        if name not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            name = "HTTP_" + name
        if name in environ:
            value = environ[name] + ("; " if name == "HTTP_COOKIE" else ",") + value
        environ[name] = value
    host = environ.get("HTTP_HOST", "localhost")
    address, port = server or (host.rpartition(":")[0] or host, 443 if scheme == "https" else 80)
    environ["SERVER_NAME"] = address
    environ["SERVER_PORT"] = str(port)
    if client is not None:
        environ["REMOTE_ADDR"] = client[0]
        environ["REMOTE_PORT"] = str(client[1])
    return environ


class Call:
    """One call of the application, on its thread."""

    def __init__(self, application, exchange, environ):
        self.application = application
        self.threads = application.threads
        self.exchange = exchange
        self.environ = environ
        self.status = None
        self.headers = None
        # Whether the head is on its way, and with it what can't be taken back.
        self.begun = False

    def run(self):
        exchange = self.exchange
        try:
            last = self.call()
        except Disconnected:
            last = ()
        except BaseException as error:
            text = own_traceback(error)
            if self.begun or exchange.disconnected:
                sys.stderr.write(text)
            last = exchange.fail, last_line(error), text
        # One call, and the loop is woken once.
        return (finish, exchange, *last)

    def call(self):
        """Calls the application and sends its reply; what remains to be done for that is returned."""
        result = self.application.app(self.environ, self.start_response)
        try:
            if not self.begun and isinstance(result, (list, tuple)):
                self.need_status()
                body = b"".join(result)
                if len(body) <= WHOLE_BYTES:
                    return self.exchange.send_whole, self.status, self.headers, body
                result = (body,)
            for piece in result:
                if piece:
                    self.write(piece)
            if not self.begun:
                self.need_status()
                return self.exchange.send_whole, self.status, self.headers, b""
            return (self.exchange.send_end,)
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def need_status(self):
        if self.status is None:
            raise RuntimeError("the application returned without calling start_response")

    def start_response(self, status, headers, exc_info=None):
        if exc_info is not None:
            try:
                if self.begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                # No circle through the traceback's frames.
                exc_info = None
        elif self.status is not None:
            raise RuntimeError("start_response was called twice, the second time without exc_info")
        code = status_of(status)
        encoded = [header_of(header) for header in headers]
        self.status, self.headers = code, encoded
        return self.write

    def write(self, piece):
        self.need_status()
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            raise TypeError(f"a WSGI body consists of bytes, not {type(piece).__name__}")
        if self.exchange.disconnected:
            raise Disconnected("the client is gone")
        if not self.begun:
            self.begun = True
            self.threads.call(self.exchange.send_head, self.status, self.headers)
        if len(piece) > 0:
            self.threads.wait_for(self.exchange.send_body(piece))


def finish(exchange, step=None, *arguments):
    """On the loop: the last step of a call."""
    try:
        if step is not None:
            step(*arguments)
    finally:
        exchange.worker.forget(exchange)


def status_of(status):
    if not isinstance(status, str):
        raise TypeError(f"a WSGI status is a str like '200 OK', not {status!r}")
    code = status[:3]
    if not (code.isascii() and code.isdigit() and status[3:4] in ("", " ")):
        raise ValueError(f"a WSGI status is a str like '200 OK', not {status!r}")
    return int(code)


def header_of(header):
    name, value = header
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"a WSGI header is a pair of str, not {header!r}")
    if name.lower() in HOP_BY_HOP:
        raise ValueError(f"the header {name!r} is the server's to send, not a WSGI application's (PEP 3333)")
    return name.encode("latin-1"), value.encode("latin-1")


class Input(io.RawIOBase):
    """wsgi.input of a body that arrives in pieces: a read waits for the next one."""

    def __init__(self, call):
        self.call = call
        self.piece = memoryview(b"")
        self.more = True

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self.piece and self.more:
            taken = self.call.threads.wait_for(self.call.exchange.next_piece())
            if taken is None:
                raise Disconnected("the client is gone in the middle of its request")
            piece, self.more = taken
            self.piece = memoryview(piece)
        count = min(len(buffer), len(self.piece))
        buffer[:count] = self.piece[:count]
        self.piece = self.piece[count:]
        return count


class FileWrapper:
    """wsgi.file_wrapper: an iterable of a file's blocks."""

    def __init__(self, file, block_size=64 << 10):
        self.file = file
        self.block_size = block_size
        if hasattr(file, "close"):
            self.close = file.close

    def __iter__(self):
        return self

    def __next__(self):
        block = self.file.read(self.block_size)
        if not block:
            raise StopIteration
        return block
