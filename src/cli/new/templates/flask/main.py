from flask import Flask

app = Flask(__name__)


@app.get("/")
def index():
    return {"hello": "world"}


@app.get("/greet/<name>")
def greet(name):
    return {"greeting": f"Hello, {name}"}
