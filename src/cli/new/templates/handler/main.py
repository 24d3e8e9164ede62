"""A function for each event, with nothing to install: requests, and the network's messages."""


def handler(event, context):
    if event["type"] != "http":
        return {"taken": event["type"]}
    name = event["path"].strip("/") or "world"
    return {"status": 200, "body": {"hello": name}}
