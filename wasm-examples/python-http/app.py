"""A `wasi:http/incoming-handler` component (WASI 0.2) in Python: componentize-py puts CPython beside it."""

import json

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports.streams import StreamError_Closed
from wit_world.imports.types import Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam

PIECE = 4096  # the most that blocking_write_and_flush takes at once


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        path, _, query = (request.path_with_query() or "/").partition("?")
        match path:
            case "/":
                reply(response_out, 200, b"Hello from Python\n")
            case "/echo":
                reply(response_out, 200, read(request))
            case "/headers":
                headers = [[name, value.decode("latin-1")] for name, value in request.headers().entries()]
                reply(response_out, 200, json.dumps({"query": query, "headers": headers}).encode(), "application/json")
            case "/raise":
                raise ValueError("asked to raise by the request for /raise")
            case _:
                reply(response_out, 404, f"nothing at {path}\n".encode())


def read(request: IncomingRequest) -> bytes:
    pieces = []
    # A stream is a child of its body: it has to go first.
    with request.consume() as body, body.stream() as stream:
        while True:
            try:
                pieces.append(stream.blocking_read(64 * 1024))
            except Err as error:
                if isinstance(error.value, StreamError_Closed):
                    return b"".join(pieces)
                raise


def reply(response_out: ResponseOutparam, status: int, text: bytes, kind: str = "text/plain; charset=utf-8") -> None:
    response = OutgoingResponse(Fields.from_list([("content-type", kind.encode())]))
    response.set_status_code(status)
    body = response.body()
    ResponseOutparam.set(response_out, Ok(response))
    with body.write() as stream:
        for start in range(0, len(text), PIECE):
            stream.blocking_write_and_flush(text[start : start + PIECE])
    OutgoingBody.finish(body, None)
