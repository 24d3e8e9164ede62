"""polyinit's Python worker: runs one ASGI application and takes its events over a socket.

Between `engine::worker` (the other end of the socket, whose descriptor is the first argument) and the program. Needs
nothing but the standard library of CPython 3.9 or newer. The frames are described in `engine/worker/frame.rs`, the heads inside them
in `engine/python/mod.rs`, what the program sees in the ASGI specification 3.0.
"""

import asyncio
import atexit
import gc
import importlib
import inspect
import json
import logging
import marshal
import os
import signal
import site
import socket
import struct
import sys
import traceback
from collections import deque

LOAD, REQUEST, MESSAGE, CANCEL, STOP, PING = 1, 2, 3, 4, 5, 6
PIECE, END, TAKEN = 16, 17, 18
READY, REFUSED, REPLY, HEAD, VALUE, FAILED, PONG = 32, 33, 34, 35, 36, 37, 38

HEADER = struct.Struct("<IIB")
LENGTH = struct.Struct("<I")
READ_BYTES = 256 << 10
# As in frame.rs: the largest piece of a body, and how many bytes of one may be on their way.
PIECE_BYTES = 128 << 10
WINDOW_BYTES = 512 << 10
# A reply up to this goes as one frame.
WHOLE_BYTES = 1 << 20
# What waits to be written before programs are made to wait, too.
BACKLOG_BYTES = 4 << 20
# How long a program may go on after its client is gone, in seconds.
CANCEL_GRACE = 5.0
# The end of a traceback says most; this many characters of it are kept.
TRACEBACK_LIMIT = 100_000

CANDIDATES = ("app", "application", "asgi", "api")
ASGI = {"version": "3.0", "spec_version": "2.4"}


class Refused(Exception):
    """The program can't be run; the message says why, in the user's terms."""


class Disconnected(OSError):
    """Raised by `send` when nobody waits for the reply any more (ASGI HTTP 2.4)."""


class Channel:
    """Frames in and out of the socket, in batches: one read and one write for a turn of the loop."""

    def __init__(self, sock):
        self.sock = sock
        self.rest = b""
        self.out = []
        self.unsent = b""
        self.loop = None
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
            piece = self.sock.recv(READ_BYTES)
            if not piece:
                sys.exit(0)
            data += piece

    def readable(self):
        try:
            data = self.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.loop.remove_reader(self.sock.fileno())
            self.on_end()
            return
        if self.rest:
            data = self.rest + data
            self.rest = b""
        self.parse(data)

    def parse(self, data):
        view = memoryview(data)
        position, end = 0, len(data)
        on_frame, unpack, size = self.on_frame, HEADER.unpack_from, HEADER.size
        while end - position >= size:
            length, stream, kind = unpack(data, position)
            begin = position + size
            if end - begin < length:
                break
            position = begin + length
            on_frame(kind, stream, view[begin:position])
        if position < end:
            self.rest = data[position:]

    def write(self, kind, stream, payload=b""):
        if not self.out:
            self.loop.call_soon(self.flush)
        self.out.append(HEADER.pack(len(payload), stream, kind))
        if payload:
            self.out.append(payload)

    def flush(self):
        if self.writing:
            return
        data = b"".join(self.out) if not self.unsent else b"".join([self.unsent, *self.out])
        self.out.clear()
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


class Exchange:
    """One event on its way through the program."""

    __slots__ = ("worker", "stream", "task", "waiters", "whole", "pieces", "body_ended", "disconnected",
                 "status", "headers", "started", "finished", "credit")

    def __init__(self, worker, stream, whole):
        self.worker = worker
        self.stream = stream
        self.task = None
        self.waiters = []
        self.whole = whole
        self.pieces = None if whole is not None else deque()
        self.body_ended = whole is not None
        self.disconnected = False
        self.status = None
        self.headers = None
        self.started = False
        self.finished = False
        self.credit = WINDOW_BYTES

    async def run(self, scope):
        worker = self.worker
        try:
            returned = await worker.app(scope, self.receive, self.send)
            if returned is not None and inspect.isawaitable(returned):
                await returned
            if not self.finished and not self.disconnected:
                what = "sent only a part of its reply" if self.status is not None else "sent nothing"
                self.fail("the program returned but " + what, None)
        except Disconnected:
            pass
        except asyncio.CancelledError:
            self.fail("the program was cancelled", None)
        except BaseException as error:
            if not self.disconnected:
                # `finished` first: Starlette raises again what it has answered with a 500 already.
                text = own_traceback(error)
                if self.finished:
                    sys.stderr.write(text)
                else:
                    self.fail(last_line(error), text)
        finally:
            worker.forget(self)

    def fail(self, message, text):
        if not self.finished:
            self.finished = True
            self.worker.channel.write(FAILED, self.stream, fault(message, text))

    async def receive(self):
        whole = self.whole
        if whole is not None:
            self.whole = None
            return {"type": "http.request", "body": whole, "more_body": False}
        while True:
            if self.pieces:
                piece = self.pieces.popleft()
                self.worker.channel.write(TAKEN, self.stream, LENGTH.pack(len(piece)))
                more = bool(self.pieces) or not self.body_ended
                if not more:
                    self.pieces = None
                return {"type": "http.request", "body": piece, "more_body": more}
            if self.disconnected or self.finished:
                return {"type": "http.disconnect"}
            if self.pieces is not None and self.body_ended:
                self.pieces = None
                return {"type": "http.request", "body": b"", "more_body": False}
            await sleep_in(self.worker.loop, self.waiters)

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
            if not self.started and not more and len(body) <= WHOLE_BYTES:
                self.reply(body)
                return
            await self.send_pieces(body, more)
        elif kind == "http.response.start":
            if self.status is not None:
                raise RuntimeError("http.response.start was sent twice")
            self.status = message["status"]
            self.headers = message.get("headers", ())
        else:
            raise RuntimeError(f"{kind!r} is no message that a reply to an HTTP request is made of")

    def reply(self, body):
        # The head is encoded first: what can't be encoded is raised where the program can see it.
        payload = self.head(body)
        self.finished = True
        channel = self.worker.channel
        channel.write(REPLY, self.stream, payload)
        if self.waiters:
            wake(self.waiters)

    def head(self, body):
        try:
            return marshal.dumps((self.status, self.headers, body), 2)
        except ValueError:
            headers = [tuple(header) for header in self.headers]
            return marshal.dumps((int(self.status), headers, bytes(body)), 2)

    async def send_pieces(self, body, more):
        worker = self.worker
        channel = worker.channel
        if not self.started:
            channel.write(HEAD, self.stream, self.head(b""))
            self.started = True
        view = memoryview(body)
        position, end = 0, len(view)
        while position < end:
            piece = view[position:position + PIECE_BYTES]
            while self.credit < len(piece) and not self.disconnected:
                await sleep_in(worker.loop, self.waiters)
            if self.disconnected:
                raise Disconnected("the client is gone")
            self.credit -= len(piece)
            position += len(piece)
            channel.write(PIECE, self.stream, bytes(piece))
            if channel.writing:
                await channel.room()
        if not more:
            self.finished = True
            channel.write(END, self.stream)
            wake(self.waiters)

    def take_piece(self, piece):
        if self.pieces is not None:
            self.pieces.append(piece)
            wake(self.waiters)

    def end_body(self):
        self.body_ended = True
        wake(self.waiters)

    def add_credit(self, count):
        self.credit += count
        wake(self.waiters)

    def disconnect(self):
        self.disconnected = True
        wake(self.waiters)
        self.worker.loop.call_later(CANCEL_GRACE, self.task.cancel)


class MessageExchange(Exchange):
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
        if isinstance(value, str):
            value = value.encode()
        elif not isinstance(value, (bytes, bytearray)):
            value = json.dumps(value, default=plain).encode()
        self.finished = True
        self.worker.channel.write(VALUE, self.stream, value)
        wake(self.waiters)


def plain(value):
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else repr(value)


class Lifespan:
    """The ASGI lifespan protocol 2.0: startup before the first event, shutdown after the last, for those who know it."""

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

    async def startup(self, timeout):
        self.messages.put_nowait({"type": "lifespan.startup"})
        self.task = self.loop.create_task(self.run())
        late = f"the program's lifespan startup did not complete within {timeout:g} s"
        timer = self.loop.call_later(timeout, settle, self.started, late)
        reason = await self.started
        timer.cancel()
        if reason is late:
            raise Refused(late)
        if reason is not None:
            raise Refused(f"the program's lifespan startup failed: {reason.strip()}")

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


class Worker:
    """The program, its events, and its life from load to exit."""

    def __init__(self, channel):
        self.channel = channel
        self.exchanges = {}
        self.app = None
        self.loop = None
        self.lifespan = None
        self.stopping = False
        self.idle = None

    def on_frame(self, kind, stream, payload):
        if kind == REQUEST:
            method, path, raw_path, query, version, scheme, headers, client, server, body = marshal.loads(payload)
            exchange = Exchange(self, stream, body)
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
                "extensions": {},
            }
            self.begin(exchange, scope)
        elif kind == MESSAGE:
            text = str(payload, "utf-8")
            exchange = MessageExchange(self, stream, text)
            state = self.lifespan.state.copy()
            self.begin(exchange, {"type": "aleph.message", "asgi": ASGI, "body": text, "state": state})
        elif kind == PING:
            self.channel.write(PONG, 0)
        elif kind == STOP:
            self.stop()
        else:
            exchange = self.exchanges.get(stream)
            if exchange is None:
                return
            if kind == TAKEN:
                exchange.add_credit(LENGTH.unpack(payload)[0])
            elif kind == PIECE:
                exchange.take_piece(bytes(payload))
            elif kind == END:
                exchange.end_body()
            elif kind == CANCEL:
                exchange.disconnect()

    def begin(self, exchange, scope):
        self.exchanges[exchange.stream] = exchange
        exchange.task = self.loop.create_task(exchange.run(scope))

    def forget(self, exchange):
        self.exchanges.pop(exchange.stream, None)
        if self.idle is not None and not self.exchanges:
            settle(self.idle, None)

    def stop(self):
        if not self.stopping:
            self.stopping = True
            self.ending = self.loop.create_task(self.end())

    async def end(self):
        if self.exchanges:
            self.idle = self.loop.create_future()
            await self.idle
        try:
            await self.lifespan.shutdown()
        finally:
            self.loop.stop()

    def run(self):
        # While nobody waits: a loop, and what the interpreter itself consists of out of the collector's way.
        self.loop = asyncio.new_event_loop()
        gc.collect()
        gc.freeze()
        kind, payload = self.channel.read_first()
        if kind != LOAD:
            sys.exit(f"the first frame is of the kind {kind}, not a program to load")
        load = json.loads(payload)
        prepare(load)
        self.loop = loop = event_loop_for(load, self.loop)
        asyncio.set_event_loop(loop)
        self.channel.loop = loop
        try:
            name, self.app = find(load)
            self.lifespan = Lifespan(self.app, loop)
            loop.run_until_complete(self.lifespan.startup(load["start_timeout"]))
        except Refused as error:
            self.refuse(str(error), None)
        except BaseException as error:
            self.refuse(last_line(error), own_traceback(error))
        found = json.dumps({"found": f"`{name}` is an ASGI application"}).encode()
        self.channel.sock.sendall(HEADER.pack(len(found), 0, READY) + found)
        # The program as it was imported stays, too. What garbage there is among it is not worth the time to find it.
        gc.freeze()
        self.channel.attach(loop, self.on_frame, self.stop)
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        loop.add_signal_handler(signal.SIGCONT, reseed)
        if self.channel.rest:
            rest, self.channel.rest = self.channel.rest, b""
            self.channel.parse(rest)
        loop.run_forever()
        self.channel.flush_blocking()
        leave(0)

    def refuse(self, message, text):
        payload = fault(message, text)
        self.channel.sock.setblocking(True)
        self.channel.sock.sendall(HEADER.pack(len(payload), 0, REFUSED) + payload)
        leave(1)


def reseed():
    """The machine was stopped, or is a copy of one that was: its twin must not have the same random numbers."""
    if random := sys.modules.get("random"):
        random.seed()


def leave(status):
    """Ends the process though threads of the program may still run."""
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(status)


def prepare(load):
    """Makes the process look as the program expects it: environment, working directory, import path."""
    for key, value in load["environment"]:
        os.environ[key] = value
    root = load["root"]
    os.chdir(root)
    sys.argv = [os.path.join(root, load["module"].replace(".", "/") + ".py")]
    paths = [root, *load["packages"]]
    paths += [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    sys.path[:] = paths + [path for path in sys.path if path and path not in paths]
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for folder in (os.path.join(root, ".venv"), os.path.join(root, "venv"), "/opt/venv"):
        packages = os.path.join(folder, "lib", version, "site-packages")
        if os.path.isdir(packages):
            before = len(sys.path)
            site.addsitedir(packages)
            # What a program brings goes before what the system has.
            added = sys.path[before:]
            del sys.path[before:]
            sys.path[len(paths):len(paths)] = added
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        sys.dont_write_bytecode = True


def event_loop_for(load, plain):
    """uvloop's where the program brings it along, which is looked for where programs bring things: `plain` otherwise."""
    places = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    places += [load["root"], *load["packages"]]
    if not any(os.path.isdir(os.path.join(place, "uvloop")) for place in places):
        return plain
    try:
        import uvloop
    except ImportError:
        return plain
    plain.close()
    return uvloop.new_event_loop()


def find(load):
    """Imports the program and returns its application, with the name that it has there."""
    module_name, attribute = load["module"], load["attribute"]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            there = sorted(name for name in os.listdir(load["root"]) if not name.startswith("."))[:20]
            raise Refused(f"there is no Python module {module_name!r} in {load['root']}, only: "
                          f"{', '.join(there) or 'nothing'}") from None
        raise
    if attribute is not None:
        target = module
        for part in attribute.split("."):
            if not hasattr(target, part):
                raise Refused(f"the module {module_name!r} has no {attribute!r}; it has: {public(module)}")
            target = getattr(target, part)
        check(attribute, target)
        return attribute, target
    for name in CANDIDATES:
        target = getattr(module, name, None)
        if callable(target) and takes(target, 3):
            return name, target
    raise Refused(f"the module {module_name!r} has no ASGI application under the names {', '.join(CANDIDATES)}; "
                  f"it has: {public(module)}. Name it in the entrypoint: {module_name}:NAME")


def public(module):
    names = [name for name, value in vars(module).items()
             if not name.startswith("_") and not inspect.ismodule(value)]
    return ", ".join(names[:20]) or "no public names"


def check(name, target):
    if not callable(target):
        raise Refused(f"{name!r} is a {type(target).__name__}, which can't be called; an ASGI application can")
    if not takes(target, 3):
        hint = "a WSGI application? Wrap it, with a2wsgi for instance" if takes(target, 2) else "see the ASGI specification"
        raise Refused(f"{name!r} can't be called as app(scope, receive, send): {hint}")


def takes(target, count):
    try:
        inspect.signature(target).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:
        # A callable of C has no signature to look at: let it try.
        return True
    return True


HERE = Worker.run.__code__.co_filename


def own_traceback(error):
    """The traceback in the program's own terms: without the frames of this file and of the import system."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == HERE:
        frames = frames.tb_next
    report = traceback.TracebackException(type(error), error, frames)
    seen = set()
    stack = [report]
    while stack:
        part = stack.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack[:] = [frame for frame in part.stack if not hidden(frame.filename)]
        stack += [part.__cause__, part.__context__]
    text = "".join(report.format())
    return text[-TRACEBACK_LIMIT:]


def hidden(filename):
    return filename == HERE or filename.startswith("<frozen importlib") or filename.endswith("/importlib/__init__.py")


def last_line(error):
    if isinstance(error, SystemExit):
        return f"the program called sys.exit({error.code!r})"
    lines = traceback.format_exception_only(type(error), error)
    return lines[-1].strip()[:2000]


def fault(message, text):
    return json.dumps({"message": message, "traceback": text}).encode()


def main():
    descriptor = int(sys.argv[1])
    # What the program starts has no business with the channel.
    os.set_inheritable(descriptor, False)
    Worker(Channel(socket.socket(fileno=descriptor))).run()


main()
