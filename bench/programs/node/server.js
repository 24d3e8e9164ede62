const server = require("node:http").createServer((request, response) => {
  if (request.url === "/echo") {
    response.writeHead(200, { "content-type": "application/octet-stream" });
    return request.pipe(response);
  }
  response.writeHead(200, { "content-type": "text/plain", "content-length": 13 });
  response.end("Hello, World!");
});

module.exports = server;

if (process.env.ALONE) server.listen(process.env.PORT, "127.0.0.1");
