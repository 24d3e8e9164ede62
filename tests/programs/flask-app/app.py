"""A small notebook in Flask: routes, forms, JSON, cookies, streaming, an error page."""

import logging
import time

from flask import Flask, Response, jsonify, make_response, request, stream_with_context

app = Flask(__name__)
app.logger.setLevel(logging.INFO)
notes = {1: "written at startup"}


@app.get("/")
def index():
    app.logger.info("somebody looks at the index")
    return f"<h1>{len(notes)} notes</h1>"


@app.get("/notes/<int:number>")
def read(number):
    if number not in notes:
        return jsonify(error=f"there is no note {number}"), 404
    return jsonify(number=number, text=notes[number], shout=request.args.get("shout") == "yes")


@app.post("/notes")
def write():
    number = max(notes) + 1
    notes[number] = request.get_json()["text"]
    response = make_response({"number": number}, 201)
    response.headers["Location"] = f"/notes/{number}"
    response.set_cookie("last", str(number))
    response.set_cookie("theme", "dark")
    return response


@app.post("/form")
def form():
    upload = request.files["file"]
    return {"name": request.form["name"], "file": upload.filename, "bytes": len(upload.read())}


@app.get("/stream")
def stream():
    def pieces():
        for number in range(10):
            yield f"piece {number}, {request.args['word']}\n"

    return Response(stream_with_context(pieces()), mimetype="text/plain")


@app.get("/slow")
def slow():
    time.sleep(float(request.args["s"]))
    return "slept"


@app.get("/path/<path:rest>")
def path(rest):
    return {"path": rest, "url": request.url, "remote": request.remote_addr}


@app.errorhandler(ValueError)
def wrong(error):
    return f"wrong value: {error}", 400


@app.get("/wrong")
def raises_value_error():
    raise ValueError("not that one")


@app.get("/crash")
def crash():
    raise RuntimeError("nobody handles this one")
