"""The site's API: the visits of this process, and what it knows of itself."""

import os
from itertools import count

from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
visits = count(1)


class Greeting(BaseModel):
    name: str


@app.get("/api/")
async def index():
    return {"site": os.environ.get("SITE_NAME", "unnamed"), "visit": next(visits)}


@app.get("/api/square/{number}")
async def square(number: int):
    return {"number": number, "square": number * number}


@app.post("/api/greet")
async def greet(greeting: Greeting):
    return {"greeting": f"Hello, {greeting.name}"}
