"""Cannot start, and says so as the ASGI specification asks."""


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "the database at db.example does not answer"})
        return
    raise RuntimeError("no request may come here")
