"""Somebody forgot a parenthesis."""

import json


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []}
    await send({"type": "http.response.body", "body": json.dumps(scope).encode()})
