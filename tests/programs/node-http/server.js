// A plain Node web server, as the first page of Node's documentation has it.

const http = require("node:http");
const { pipeline } = require("node:stream");
const { gzipSync } = require("node:zlib");

const port = process.env.PORT || 8080;

const routes = {
  "/": (request, response) => text(response, "Hello from a plain Node server\n"),

  "/json": (request, response) => json(response, { hello: "world", url: request.url, headers: request.rawHeaders }),

  "/echo": (request, response) => {
    response.writeHead(200, { "content-type": request.headers["content-type"] ?? "application/octet-stream" });
    pipeline(request, response, (error) => error && console.error(`echo: ${error.message}`));
  },

  "/stream": async (request, response) => {
    response.writeHead(200, { "content-type": "text/plain" });
    for (let piece = 0; piece < 10; piece++) {
      response.write(`piece ${piece}\n`);
      await new Promise(setImmediate);
    }
    response.end();
  },

  "/cookies": (request, response) => {
    response.setHeader("set-cookie", ["a=1; Path=/", "b=2; Path=/"]);
    text(response, "two cookies\n");
  },

  // Compressed whether the client asked for it or not.
  "/gzip": (request, response) => {
    const body = gzipSync("this was compressed\n".repeat(100));
    response.writeHead(200, { "content-type": "text/plain", "content-encoding": "gzip", "content-length": body.length });
    response.end(body);
  },

  "/redirect": (request, response) => {
    response.writeHead(302, { location: "/json?a=%20b" });
    response.end();
  },

  // Uncaught: Node ends the process.
  "/throw": () => {
    throw new Error("this route always throws");
  },
};

const server = http.createServer((request, response) => {
  const path = request.url.split("?")[0];
  const route = routes[path];
  if (route) route(request, response);
  else text(response, `nothing at ${path}\n`, 404);
});

server.listen(port, () => console.log(`listening on port ${port}`));

process.on("SIGTERM", () => server.close(() => process.exit(0)));

function text(response, body, status = 200) {
  response.writeHead(status, { "content-type": "text/plain; charset=utf-8" });
  response.end(body);
}

function json(response, value) {
  response.writeHead(200, { "content-type": "application/json" });
  response.end(JSON.stringify(value));
}
