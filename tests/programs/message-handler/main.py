"""Answers network messages with the help of a small framework, and web requests with a page."""

import json


class Subscriptions:
    """Calls the functions that were registered with `on_message`.

    Like some frameworks of its kind it gives the work back as a coroutine, for the caller to await.
    """

    def __init__(self):
        self.handlers = []

    def on_message(self, handler):
        self.handlers.append(handler)
        return handler

    async def __call__(self, scope, receive, send):
        if scope["type"] == "aleph.message":

            async def run():
                for handler in self.handlers:
                    await send(await handler(event=scope))

            return run()
        if scope["type"] == "http":
            headers = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"send me a message\n"})
            return None
        raise ValueError(f"unknown scope type {scope['type']}")


app = Subscriptions()


@app.on_message
async def count(event):
    message = json.loads(event["body"])
    return {"result": "Good", "sender": message.get("sender")}
