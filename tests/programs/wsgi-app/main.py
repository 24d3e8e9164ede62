"""A WSGI application (PEP 3333): synchronous, as Flask and Django programs are underneath."""

import time
from urllib.parse import parse_qs


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/":
        return reply(start_response, b"Hello from WSGI\n")
    if path == "/echo":
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        return reply(start_response, body, headers=[("Content-Type", environ.get("CONTENT_TYPE") or "application/octet-stream")])
    if path == "/environ":
        lines = [f"{name}={value}" for name, value in sorted(environ.items()) if isinstance(value, str)]
        return reply(start_response, "\n".join(lines).encode("latin-1"))
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (f"piece {number}\n".encode() for number in range(10))
    if path == "/write":
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"written, ")
        return [b"then returned\n"]
    if path == "/block":
        seconds = float(parse_qs(environ["QUERY_STRING"]).get("s", ["1"])[0])
        time.sleep(seconds)
        return reply(start_response, f"blocked for {seconds} s\n".encode())
    if path == "/raise":
        raise RuntimeError("this route always fails")
    return reply(start_response, f"nothing at {path}\n".encode("latin-1"), "404 Not Found")


def reply(start_response, body, status="200 OK", headers=(("Content-Type", "text/plain"),)):
    start_response(status, [*headers, ("Content-Length", str(len(body)))])
    return [body]
