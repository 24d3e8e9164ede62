"""WebSockets by the ASGI specification alone: each path does one thing that it allows, or forbids."""

import asyncio
import json

seen = {}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        scope["state"]["shared"] = ["from the lifespan"]
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(seen).encode()})
    else:
        assert scope["type"] == "websocket"
        assert (await receive()) == {"type": "websocket.connect"}
        await globals()[scope["path"][1:].replace("-", "_")](scope, receive, send)


async def accept(send, **more):
    await send({"type": "websocket.accept", **more})


async def echo(scope, receive, send):
    await accept(send)
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            seen["echo"] = [message["code"], message["reason"]]
            return
        assert message["type"] == "websocket.receive"
        await send({"type": "websocket.send", "text": message["text"], "bytes": message["bytes"]})


async def show_scope(scope, receive, send):
    await accept(send, subprotocol="one")
    shown = {name: value if name == "state" else repr(value) for name, value in scope.items()}
    await send({"type": "websocket.send", "text": json.dumps(shown)})
    await receive()


async def subprotocol(scope, receive, send):
    headers = [(b"x-more", b"1"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    await accept(send, subprotocol=scope["subprotocols"][-1], headers=headers)
    await send({"type": "websocket.close"})


async def reject(scope, receive, send):
    await send({"type": "websocket.close", "code": 1001})
    seen["reject"] = (await receive())["type"]


async def deny(scope, receive, send):
    assert "websocket.http.response" in scope["extensions"]
    headers = [(b"content-type", b"text/plain"), (b"x-why", b"not today")]
    await send({"type": "websocket.http.response.start", "status": 418, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b"no ", "more_body": True})
    await send({"type": "websocket.http.response.body", "body": b"thanks"})


async def deny_halfway(scope, receive, send):
    await send({"type": "websocket.http.response.start", "status": 418, "headers": []})


async def silent(scope, receive, send):
    pass


async def too_early(scope, receive, send):
    await send({"type": "websocket.send", "text": "before accept"})


async def raises_before(scope, receive, send):
    raise RuntimeError("it can't even begin")


async def raises(scope, receive, send):
    await accept(send)
    raise RuntimeError("it went wrong in the middle")


async def accepts_twice(scope, receive, send):
    await accept(send)
    await accept(send)


async def returns(scope, receive, send):
    await accept(send)
    await send({"type": "websocket.send", "text": "last words"})


async def closes(scope, receive, send):
    await accept(send)
    await send({"type": "websocket.close", "code": 4321, "reason": "därum"})
    try:
        await send({"type": "websocket.send", "text": "too late"})
    except Exception as error:
        seen["closes"] = type(error).__name__


async def sends_after_disconnect(scope, receive, send):
    await accept(send)
    seen["code"] = (await receive())["code"]
    try:
        await send({"type": "websocket.send", "text": "too late"})
    except OSError as error:
        seen["error"] = type(error).__name__


async def reads_what_came_before_the_close(scope, receive, send):
    await accept(send)
    while not seen.get("go"):
        await asyncio.sleep(0.01)
    types = []
    while not types or types[-1] != "websocket.disconnect":
        types.append((await receive())["type"])
    seen["types"] = types


async def go(scope, receive, send):
    seen["go"] = True
    await accept(send)


async def flood(scope, receive, send):
    await accept(send)
    seen["flood"] = 0
    while True:
        await send({"type": "websocket.send", "bytes": b"x" * 65536})
        seen["flood"] += 65536


async def lazy(scope, receive, send):
    await accept(send)
    await send({"type": "websocket.send", "text": "ready"})
    while not seen.get("go"):
        await asyncio.sleep(0.01)
    total = 0
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            seen["lazy"] = total
            return
        total += len(message["bytes"])


async def waits(scope, receive, send):
    await accept(send)
    await send({"type": "websocket.send", "text": "waiting"})
    message = await receive()
    print("told of the end:", message["code"])
