BODY = b"x" * (1 << 20)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        event = await receive()
        await send({"type": event["type"] + ".complete"})
        return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [[b"content-type", b"text/plain"]]})
    await send({"type": "http.response.body", "body": BODY})
