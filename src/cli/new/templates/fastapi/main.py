from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def index():
    return {"hello": "world"}


@app.get("/greet/{name}")
async def greet(name: str, shout: bool = False):
    greeting = f"Hello, {name}"
    return {"greeting": greeting.upper() + "!" if shout else greeting}
