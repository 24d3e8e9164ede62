"""A plain function for requests and messages: all that it may return."""

import sys
import time


def handler(event, context):
    if event["type"] == "aleph.message":
        print("a message")
        return {"from": event["message"]["sender"], "text": event["body"]}
    path = event["path"]
    if path == "/event":
        return {**event, "body": event["body"].decode(), "id": context.id, "remaining": context.remaining() > 1}
    if path == "/count":
        context.state["count"] = context.state.get("count", 0) + 1
        return {"count": context.state["count"]}
    if path == "/text":
        return "text, häppily"
    if path == "/bytes":
        return b"\x00\x01\x02"
    if path == "/nothing":
        return None
    if path == "/list":
        return [1, "two", None]
    if path == "/full":
        return {
            "status": 201,
            "headers": {"location": "/full/1", "set-cookie": ["a=1", "b=2"], "content-type": "text/x-full"},
            "body": "made",
        }
    if path == "/json-body":
        return {"status": 418, "body": {"tea": True}}
    if path == "/pieces":
        return (f"piece {number}\n" for number in range(10))
    if path == "/large":
        return "x" * 3_000_000
    if path == "/sleep":
        time.sleep(float(event["query"]["s"]))
        return "slept"
    if path == "/print":
        print("begins", end=" ")
        print("and ends", file=sys.stdout)
        return "printed"
    if path == "/object":
        return object()
    if path == "/raise":
        raise LookupError("nothing to be found")
    return {"status": 404, "body": f"nothing at {path}"}
