"""A chat room in Starlette: pages, JSON, uploads, server-sent events, WebSockets, lifespan state, middleware."""

import asyncio
import contextlib
import logging

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

log = logging.getLogger("chat")
logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")


class Room:
    def __init__(self):
        self.members = set()
        self.left = []

    async def say(self, text):
        for member in list(self.members):
            await member.send_text(text)


@contextlib.asynccontextmanager
async def lifespan(app):
    room = Room()
    yield {"room": room}
    print("the room is closed")


async def index(request):
    return JSONResponse({"members": len(request.state.room.members), "left": request.state.room.left})


async def announce(request):
    done = BackgroundTask(request.state.room.say, (await request.body()).decode())
    return PlainTextResponse("it will be said\n", 202, background=done)


async def events(request):
    async def pieces():
        for number in range(5):
            await asyncio.sleep(0)
            yield f"data: {number}\n\n"

    return StreamingResponse(pieces(), media_type="text/event-stream")


async def large(request):
    return PlainTextResponse("na " * 100_000)


async def chat(websocket: WebSocket):
    room = websocket.state.room
    name = websocket.path_params["name"]
    if name == "nobody":
        await websocket.close(4001)
        return
    if name == "banned":
        await websocket.send_denial_response(JSONResponse({"error": "you are banned"}, 451))
        return
    await websocket.accept("chat" if "chat" in websocket.scope["subprotocols"] else None)
    room.members.add(websocket)
    log.info("%s comes in", name)
    try:
        while True:
            text = await websocket.receive_text()
            if text == "kick me":
                await websocket.close(4000, "kicked")
                return
            if text == "crash":
                raise RuntimeError("the chat crashed")
            await room.say(f"{name}: {text}")
    except WebSocketDisconnect as gone:
        room.left.append([name, gone.code, gone.reason])
    finally:
        room.members.discard(websocket)


async def crash(request):
    raise RuntimeError("this page always fails")


app = Starlette(
    routes=[
        Route("/", index),
        Route("/announce", announce, methods=["POST"]),
        Route("/events", events),
        Route("/crash", crash),
        Mount("/files", routes=[Route("/large", large)]),
        WebSocketRoute("/chat/{name}", chat),
    ],
    middleware=[Middleware(GZipMiddleware)],
    lifespan=lifespan,
)
