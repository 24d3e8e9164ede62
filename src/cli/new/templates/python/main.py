"""A web application with nothing to install: ASGI (https://asgi.readthedocs.io), which polyinit speaks itself."""

import json


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    name = scope["path"].strip("/") or "world"
    body = json.dumps({"hello": name}).encode()
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def lifespan(receive, send):
    """Called once before the first request, and once after the last: the place to open and close what lasts."""
    while True:
        event = await receive()
        if event["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            return await send({"type": "lifespan.shutdown.complete"})
