"""Quart: Flask's interface over ASGI, with a WebSocket and before/after serving hooks."""

from quart import Quart, request, websocket

app = Quart(__name__)


@app.before_serving
async def begin():
    app.greeting = "hello"


@app.after_serving
async def end():
    print("quart says goodbye")


@app.get("/")
async def index():
    return {"greeting": app.greeting, "query": request.args.get("q")}


@app.post("/echo")
async def echo():
    return await request.get_data(), 200, {"Content-Type": "application/octet-stream"}


@app.get("/stream")
async def stream():
    async def pieces():
        for number in range(10):
            yield f"piece {number}\n".encode()

    return pieces(), 200, {"Content-Type": "text/plain"}


@app.websocket("/shout")
async def shout():
    while True:
        await websocket.send((await websocket.receive()).upper())
