"""Litestar: typed handlers, dependency injection, validation, a WebSocket listener."""

from dataclasses import dataclass

from litestar import Litestar, get, post, websocket_listener
from litestar.di import Provide


@dataclass
class Note:
    text: str
    stars: int = 0


async def tax() -> int:
    return 19


@get("/")
async def index(tax: int) -> dict[str, int]:
    return {"tax": tax}


@get("/notes/{number:int}")
async def read(number: int, shout: bool = False) -> Note:
    return Note("LOUD" if shout else "quiet", number)


@post("/notes")
async def write(data: Note) -> Note:
    return data


@websocket_listener("/double")
async def double(data: dict[str, int]) -> dict[str, int]:
    return {"double": data["number"] * 2}


app = Litestar([index, read, write, double], dependencies={"tax": Provide(tax)})
