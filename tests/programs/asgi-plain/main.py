"""An ASGI application by the specification alone, with the good and the bad manners that applications have."""

import asyncio
import json
import os
import time
from urllib.parse import parse_qs

GREETING = "Hello from the module's own globals"
requests_seen = 0
last_disconnect = None


async def app(scope, receive, send):
    global requests_seen
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "aleph.message":
        await answer_message(receive, send)
    elif scope["type"] == "http":
        requests_seen += 1
        route = ROUTES.get(scope["path"], not_found)
        await route(scope, receive, send)
    else:
        raise NotImplementedError(f"scope type {scope['type']}")


async def lifespan(receive, send):
    while True:
        event = await receive()
        await send({"type": event["type"] + ".complete"})
        if event["type"] == "lifespan.shutdown":
            return


async def answer_message(receive, send):
    event = await receive()
    message = json.loads(event["body"])
    if message.get("content", {}).get("fail"):
        raise ValueError("this message asked for a failure")
    await send({"type": "aleph.message.reply", "sender": message.get("sender"), "keys": sorted(message)})


async def read_body(receive):
    body, more = b"", True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    return body


async def start(send, status=200, content_type=b"text/plain; charset=utf-8", headers=()):
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type), *headers]})


async def text(send, body, status=200):
    await start(send, status)
    await send({"type": "http.response.body", "body": body.encode()})


async def as_json(send, value):
    await start(send, content_type=b"application/json")
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


def number(scope, name, default):
    return float(parse_qs(scope["query_string"].decode()).get(name, [default])[0])


async def index(scope, receive, send):
    await text(send, "Hello from plain ASGI\n")


async def not_found(scope, receive, send):
    await text(send, f"nothing at {scope['path']}\n", 404)


async def several(scope, receive, send):
    await start(send)
    for piece in range(10):
        await send({"type": "http.response.body", "body": f"piece {piece}\n".encode(), "more_body": True})
    await send({"type": "http.response.body"})


async def echo(scope, receive, send):
    """Sends each piece of the body on as it comes."""
    await start(send, content_type=dict(scope["headers"]).get(b"content-type", b"application/octet-stream"))
    more = True
    while more:
        event = await receive()
        more = event.get("more_body", False)
        await send({"type": "http.response.body", "body": event.get("body", b""), "more_body": more})


async def disconnect(scope, receive, send):
    """Waits for the client to go, as applications with server-sent events do."""
    global last_disconnect
    await read_body(receive)
    last_disconnect = "waiting"
    await start(send)
    await send({"type": "http.response.body", "body": b"waiting for you to leave\n", "more_body": True})
    event = await receive()
    last_disconnect = event["type"]


async def after_reply(scope, receive, send):
    """Asks for the next event after the reply is complete."""
    global last_disconnect
    await read_body(receive)
    last_disconnect = "waiting"
    await text(send, "done\n")
    event = await receive()
    last_disconnect = event["type"]


async def tell_last_disconnect(scope, receive, send):
    await as_json(send, last_disconnect)


async def silent(scope, receive, send):
    return


async def half(scope, receive, send):
    """Announces more and returns."""
    await start(send)
    await send({"type": "http.response.body", "body": b"half of an ans", "more_body": True})


async def never(scope, receive, send):
    await asyncio.Event().wait()


async def leave(scope, receive, send):
    raise SystemExit(3)


async def die(scope, receive, send):
    """What a crash in a C library looks like from outside."""
    os._exit(9)


async def fail(scope, receive, send):
    raise RuntimeError("this route always fails")


async def fail_midway(scope, receive, send):
    await start(send)
    await send({"type": "http.response.body", "body": b"half of an ans", "more_body": True})
    raise RuntimeError("this route fails in the middle of its answer")


async def block(scope, receive, send):
    """Holds the event loop, as a program does that calls a blocking library."""
    seconds = number(scope, "s", 1)
    time.sleep(seconds)
    await text(send, f"blocked for {seconds} s\n")


async def wait(scope, receive, send):
    seconds = number(scope, "s", 1)
    await asyncio.sleep(seconds)
    await text(send, f"waited for {seconds} s\n")


async def show_scope(scope, receive, send):
    await as_json(send, {key: repr(value) for key, value in scope.items()})


async def module_globals(scope, receive, send):
    await as_json(send, {"greeting": GREETING, "requests_seen": requests_seen, "name": __name__, "pid": os.getpid()})


async def cookies(scope, receive, send):
    await start(send, headers=[(b"set-cookie", b"a=1; Path=/"), (b"set-cookie", b"b=2; Path=/")])
    await send({"type": "http.response.body", "body": b"two cookies\n"})


async def environ(scope, receive, send):
    await as_json(send, dict(os.environ))


async def prints(scope, receive, send):
    print("a line on stdout")
    await text(send, "printed\n")


ROUTES = {
    "/": index,
    "/several": several,
    "/echo": echo,
    "/disconnect": disconnect,
    "/after-reply": after_reply,
    "/last-disconnect": tell_last_disconnect,
    "/silent": silent,
    "/half": half,
    "/never": never,
    "/exit": leave,
    "/die": die,
    "/raise": fail,
    "/raise-midway": fail_midway,
    "/block": block,
    "/wait": wait,
    "/scope": show_scope,
    "/globals": module_globals,
    "/cookies": cookies,
    "/environ": environ,
    "/print": prints,
}
