"""A coroutine function, and many of it at once on one loop."""

import asyncio

waiting = []


async def handler(event, context):
    if event["type"] == "aleph.message":
        return "got " + event["message"]["sender"]
    if event["path"] == "/meet":
        # Returns once two are there.
        waiting.append(asyncio.get_running_loop().create_future())
        if len(waiting) == 2:
            for other in waiting:
                other.set_result(None)
        await waiting[0]
        return "met"
    if event["path"] == "/pieces":

        async def pieces():
            for number in range(10):
                await asyncio.sleep(0)
                yield f"piece {number}\n"

        return pieces()
    return {"method": event["method"], "length": len(event["body"])}
