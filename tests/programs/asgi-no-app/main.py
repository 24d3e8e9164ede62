"""Has an application, but not by a name that anyone would look for."""


async def my_service(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"found\n"})
