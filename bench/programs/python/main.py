"""What is measured beside other servers: the least, JSON, an upload that comes back, and a stream."""

import json

TEXT = [(b"content-type", b"text/plain")]
JSON = [(b"content-type", b"application/json")]


async def app(scope, receive, send):
    if scope["type"] == "http":
        await ROUTES[scope["path"]](receive, send)
    elif scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return


async def hello(receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [*TEXT, (b"content-length", b"13")]})
    await send({"type": "http.response.body", "body": b"Hello, World!"})


async def as_json(receive, send):
    body = json.dumps({"message": "Hello, World!", "numbers": list(range(20))}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [*JSON, (b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def echo(receive, send):
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(pieces)
    await send({"type": "http.response.start", "status": 200, "headers": [*TEXT, (b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def stream(receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": TEXT})
    for _ in range(100):
        await send({"type": "http.response.body", "body": b"a piece of a hundred, of some 50 bytes, more or less\n", "more_body": True})
    await send({"type": "http.response.body"})


ROUTES = {"/hello": hello, "/json": as_json, "/echo": echo, "/stream": stream}
