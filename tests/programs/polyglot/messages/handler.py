"""Handles network messages: counts the words of a post."""

import json


async def app(scope, receive, send):
    if scope["type"] != "aleph.message":
        raise ValueError(f"this program handles messages, not {scope['type']}")
    event = await receive()
    message = json.loads(event["body"])
    await send({"sender": message.get("sender"), "words": len(words_of(message.get("content")))})


def words_of(value):
    """The words of all texts in a JSON value."""
    if isinstance(value, str):
        return value.split()
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, (list, type({}.values()))):
        return [word for part in value for word in words_of(part)]
    return []
