"""HTTP by the ASGI specification alone: each path does one thing that it allows, or forbids."""

import asyncio
import json
import logging
import sys
import traceback

seen = {}
logging.basicConfig(format="%(levelname)s %(message)s")
TEXT = [(b"content-type", b"text/plain")]


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        scope["state"]["shared"] = {"count": 0}
        scope["state"]["word"] = "from the lifespan"
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "http":
        await globals().get(scope["path"][1:].replace("-", "_"), show_scope)(scope, receive, send)
    else:
        raise NotImplementedError(scope["type"])


async def start(send, status=200, headers=TEXT, **more):
    await send({"type": "http.response.start", "status": status, "headers": headers, **more})


async def body(send, data=b"", more=False):
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def answer(send, value):
    await start(send, headers=[(b"content-type", b"application/json")])
    await body(send, json.dumps(value).encode())


async def show_scope(scope, receive, send):
    await answer(send, {name: repr(value) for name, value in scope.items()})


async def show_seen(scope, receive, send):
    await answer(send, seen)


async def state(scope, receive, send):
    # The state is this request's own copy, what is in it is everybody's.
    scope["state"]["word"] += "!"
    scope["state"]["shared"]["count"] += 1
    await answer(send, scope["state"])


async def trailers(scope, receive, send):
    assert "http.response.trailers" in scope["extensions"]
    await start(send, headers=[(b"trailer", b"x-checksum, x-more")], trailers=True)
    await body(send, b"the body")
    await send({"type": "http.response.trailers", "headers": [(b"x-checksum", b"abc")], "more_trailers": True})
    await send({"type": "http.response.trailers", "headers": [(b"x-more", b"1")]})


async def defaults(scope, receive, send):
    # headers, body and more_body may all be left out.
    await send({"type": "http.response.start", "status": 202})
    await send({"type": "http.response.body"})


async def iterables(scope, receive, send):
    # Lists for pairs, a generator for the headers, a bytearray for the body.
    await start(send, headers=(list(header) for header in [(b"X-Upper", b"1"), (b"x-twice", b"a"), (b"x-twice", b"b")]))
    await body(send, bytearray(b"bytes"))


async def pieces(scope, receive, send):
    await start(send)
    for data in (b"one ", b"", b"two ", memoryview(b"three")):
        await body(send, data, True)
    await body(send)


async def starts_twice(scope, receive, send):
    await start(send)
    await start(send)


async def body_first(scope, receive, send):
    await body(send, b"no head")


async def after_the_end(scope, receive, send):
    await start(send)
    await body(send, b"whole")
    try:
        await body(send, b"more")
    except Exception as error:
        seen["after the end"] = type(error).__name__
    seen["received"] = [(await receive())["type"] for _ in range(3)]


async def unknown_message(scope, receive, send):
    await send({"type": "http.response.nonsense"})


async def text_header(scope, receive, send):
    await start(send, headers=[("content-type", "text/plain")])
    await body(send)


async def split_header(scope, receive, send):
    await start(send, headers=[(b"x-split", b"a\r\nset-cookie: b")])
    await body(send)


async def bad_status(scope, receive, send):
    await start(send, status=1000)
    await body(send)


async def lies_about_its_length(scope, receive, send):
    await start(send, headers=[(b"content-length", b"3")])
    await body(send, b"four")


async def sends_to_nobody(scope, receive, send):
    await start(send)
    try:
        while True:
            await body(send, b"x" * 65536, True)
    except OSError as error:
        seen["nobody"] = type(error).__name__
        raise


async def is_cancelled(scope, receive, send):
    await start(send)
    await body(send, b"begun", True)
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        seen["cancelled"] = True
        raise


async def logs(scope, receive, send):
    # In every way that programs have, with other events in between.
    name = scope["query_string"].decode()
    print(name, "begins", end=" ")
    while len(seen.setdefault("logging", [])) < 2 and name not in seen["logging"]:
        seen["logging"].append(name)
        await asyncio.sleep(0)
    print("and goes on")
    logging.warning("%s by logging\nin two lines", name)
    await asyncio.to_thread(print, name, "by a thread")
    await asyncio.create_task(in_a_task(name))
    sys.stdout.buffer.write(f"{name} in bytes: ".encode() + b"\xff\n")
    try:
        raise KeyError(name)
    except KeyError:
        traceback.print_exc()
    print(name, "ends", end="")
    await answer(send, name)


async def in_a_task(name):
    await asyncio.sleep(0)
    print(name, "by a task", file=sys.stderr, flush=True)


async def counts(scope, receive, send):
    total, messages, more = 0, 0, True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        total, messages, more = total + len(message["body"]), messages + 1, message["more_body"]
    await answer(send, [total, messages])
