"""A WSGI application by the specification alone (PEP 3333), with the good and the bad manners that applications have."""

import sys
import threading
import time
from urllib.parse import parse_qs

closed = []
TEXT = [("Content-Type", "text/plain")]


def app(environ, start_response):
    route = ROUTES.get(environ["PATH_INFO"].encode("latin-1").decode(), not_found)
    return route(environ, start_response)


def reply(start_response, body, status="200 OK", headers=TEXT):
    start_response(status, [*headers, ("Content-Length", str(len(body)))])
    return [body]


class Pieces:
    """An iterable that remembers how it ended."""

    def __init__(self, name, pieces):
        self.name = name
        self.pieces = iter(pieces)

    def __iter__(self):
        return self.pieces

    def close(self):
        closed.append(self.name)


def index(environ, start_response):
    return reply(start_response, b"Hello from WSGI\n")


def echo(environ, start_response):
    length = environ.get("CONTENT_LENGTH")
    body = environ["wsgi.input"].read(int(length)) if length else environ["wsgi.input"].read()
    kind = environ.get("CONTENT_TYPE") or "application/octet-stream"
    return reply(start_response, body, headers=[("Content-Type", kind)])


def show_environ(environ, start_response):
    lines = [f"{name}={value!r}" for name, value in sorted(environ.items())]
    return reply(start_response, "\n".join(lines).encode())


def lines(environ, start_response):
    body = environ["wsgi.input"]
    first = body.readline()
    several = body.readlines(1)
    rest = list(body)
    return reply(start_response, repr((first, several, rest, body.read())).encode())


def stream(environ, start_response):
    start_response("200 OK", TEXT)
    return Pieces("stream", (f"piece {number}\n".encode() for number in range(10)))


def endless(environ, start_response):
    def pieces():
        while True:
            yield b"x" * 65536

    start_response("200 OK", TEXT)
    return Pieces("endless", pieces())


def breaks(environ, start_response):
    def pieces():
        yield b"one piece\n"
        raise RuntimeError("the source of the stream ran dry")

    start_response("200 OK", TEXT)
    return Pieces("breaks", pieces())


def write(environ, start_response):
    write = start_response("200 OK", TEXT)
    write(b"written, ")
    return [b"then returned\n"]


def changes_its_mind(environ, start_response):
    start_response("200 OK", TEXT)
    try:
        raise ValueError("too bad")
    except ValueError:
        start_response("500 Oh No", TEXT, sys.exc_info())
    return [b"sorry\n"]


def changes_its_mind_too_late(environ, start_response):
    write = start_response("200 OK", TEXT)
    write(b"begun")
    try:
        raise ValueError("too late")
    except ValueError:
        start_response("500 Oh No", TEXT, sys.exc_info())
    return [b"never seen"]


def late_start(environ, start_response):
    # A generator calls start_response when it is first asked for a piece.
    def pieces():
        start_response("202 Accepted", TEXT)
        yield b""
        yield b"late\n"

    return pieces()


def never_starts(environ, start_response):
    return [b"no head"]


def starts_twice(environ, start_response):
    start_response("200 OK", TEXT)
    start_response("200 OK", TEXT)
    return []


def hop_by_hop(environ, start_response):
    start_response("200 OK", [("Connection", "close")])
    return []


def bad_status(environ, start_response):
    start_response("OK", TEXT)
    return []


def text_body(environ, start_response):
    start_response("200 OK", TEXT)
    return iter(["this is no bytes"])


def empty(environ, start_response):
    start_response("204 No Content", [])
    return []


def file(environ, start_response):
    start_response("200 OK", TEXT)
    return environ["wsgi.file_wrapper"](open(__file__, "rb"), 100)


def errors(environ, start_response):
    environ["wsgi.errors"].write("a line of ")
    environ["wsgi.errors"].writelines(["wsgi", ".errors\n"])
    environ["wsgi.errors"].flush()
    return index(environ, start_response)


def was_closed(environ, start_response):
    return reply(start_response, ",".join(closed).encode())


def block(environ, start_response):
    seconds = float(parse_qs(environ["QUERY_STRING"]).get("s", ["1"])[0])
    time.sleep(seconds)
    return reply(start_response, f"blocked for {seconds} s\n".encode())


meeting = threading.Barrier(8)


def meet(environ, start_response):
    meeting.wait(60)
    return reply(start_response, b"met\n")


def fail(environ, start_response):
    raise RuntimeError("this route always fails")


def not_found(environ, start_response):
    return reply(start_response, f"nothing at {environ['PATH_INFO']}\n".encode("latin-1"), "404 Not Found")


ROUTES = {
    "/": index,
    "/echo": echo,
    "/environ": show_environ,
    "/ünder/way": show_environ,
    "/lines": lines,
    "/stream": stream,
    "/endless": endless,
    "/breaks": breaks,
    "/write": write,
    "/changes-its-mind": changes_its_mind,
    "/changes-its-mind-too-late": changes_its_mind_too_late,
    "/late-start": late_start,
    "/never-starts": never_starts,
    "/starts-twice": starts_twice,
    "/hop-by-hop": hop_by_hop,
    "/bad-status": bad_status,
    "/text-body": text_body,
    "/empty": empty,
    "/file": file,
    "/errors": errors,
    "/closed": was_closed,
    "/block": block,
    "/meet": meet,
    "/raise": fail,
}
