"""Answers /read?path=... with that file's content: plain ASGI, for bench/boot."""

from urllib.parse import parse_qs


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        event = await receive()
        await send({"type": event["type"] + ".complete"})
        return
    query = scope["query_string"]
    query = query.decode() if isinstance(query, bytes) else query
    with open(parse_qs(query)["path"][0], "rb") as file:
        content = file.read()
    await send({"type": "http.response.start", "status": 200, "headers": [[b"content-type", b"text/plain"]]})
    await send({"type": "http.response.body", "body": content})
