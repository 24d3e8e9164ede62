# The body is an argument's default: today's guest runs plain code so that its functions can't see its globals.
async def app(scope, receive, send, body=b"x" * (1 << 20)):
    if scope["type"] == "lifespan":
        event = await receive()
        await send({"type": event["type"] + ".complete"})
        return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [[b"content-type", b"text/plain"]]})
    await send({"type": "http.response.body", "body": body})
