"""Takes the shop's orders as they come over the network, and adds them up."""

import json

counts = {}


async def app(scope, receive, send):
    if scope["type"] != "aleph.message":
        raise ValueError(f"this program handles messages, not {scope['type']}")
    message = json.loads((await receive())["body"])
    order = message["content"]
    counts[order["product"]] = counts.get(order["product"], 0) + order["count"]
    await send({"from": message.get("sender"), "ordered": counts})
