"""A small notes service."""

import asyncio
import hashlib
import os
import time
from contextlib import asynccontextmanager
from typing import Optional

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel


def log_lifespan(line: str) -> None:
    if path := os.environ.get("LIFESPAN_LOG"):
        with open(path, "a") as log:
            log.write(line + "\n")


@asynccontextmanager
async def lifespan(app: FastAPI):
    app.state.notes = {1: {"text": "written at startup", "stars": 5}}
    log_lifespan("startup")
    yield
    log_lifespan(f"shutdown with {len(app.state.notes)} notes")


app = FastAPI(title="Notes")
# FastAPI(lifespan=...) came with FastAPI 0.93; this works before and after.
app.router.lifespan_context = lifespan


class Note(BaseModel):
    text: str
    stars: int = 0


@app.get("/")
async def index():
    return {"hello": "world", "notes": len(app.state.notes)}


@app.get("/notes/{number}")
async def read(number: int, shout: bool = False, times: int = 1):
    if number not in app.state.notes:
        raise HTTPException(status_code=404, detail=f"there is no note {number}")
    note = dict(app.state.notes[number])
    note["text"] = " ".join([note["text"].upper() if shout else note["text"]] * times)
    return note


@app.post("/notes", status_code=201)
async def write(note: Note, response: Response):
    number = max(app.state.notes) + 1
    app.state.notes[number] = {"text": note.text, "stars": note.stars}
    response.headers["location"] = f"/notes/{number}"
    return {"number": number, **app.state.notes[number]}


@app.get("/search")
async def search(q: Optional[str] = None):
    found = [number for number, note in app.state.notes.items() if q is None or q in note["text"]]
    return {"q": q, "found": found}


@app.get("/stream")
async def stream(delay: float = 0):
    async def pieces():
        for number in range(10):
            await asyncio.sleep(delay)
            yield f"piece {number}\n"

    return StreamingResponse(pieces(), media_type="text/plain")


@app.get("/stream-breaks")
async def stream_breaks():
    async def pieces():
        yield "one piece\n"
        raise RuntimeError("the source of the stream ran dry")

    return StreamingResponse(pieces(), media_type="text/plain")


@app.get("/url")
async def url(request: Request):
    return {"url": str(request.url), "base": str(request.base_url), "client": request.client and request.client.host}


@app.get("/cookies")
async def cookies(response: Response):
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", httponly=True)
    return {"cookies": 2}


@app.post("/upload")
async def upload(request: Request):
    length, digest = 0, hashlib.sha256()
    async for piece in request.stream():
        length += len(piece)
        digest.update(piece)
    return {"length": length, "sha256": digest.hexdigest()}


@app.get("/large")
async def large(size: int = 1_000_000):
    return Response(b"x" * size, media_type="application/octet-stream")


@app.get("/sync")
def sync(seconds: float = 0):
    # FastAPI runs plain functions in a thread.
    time.sleep(seconds)
    return {"slept": seconds}


@app.get("/raise")
async def fail():
    raise RuntimeError("this route always fails")
