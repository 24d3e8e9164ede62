// Koa's middleware, with WebSockets beside it, listening itself.

const Koa = require("koa");
const { createServer } = require("node:http");
const { WebSocketServer } = require("ws");

const app = new Koa();

app.use(async (ctx, next) => {
  const began = process.hrtime.bigint();
  await next();
  ctx.set("x-response-time", `${Number(process.hrtime.bigint() - began) / 1e6} ms`);
});

app.use(async (ctx) => {
  switch (ctx.path) {
    case "/":
      ctx.body = "Hello from Koa\n";
      break;
    case "/echo":
      ctx.type = "application/octet-stream";
      ctx.body = ctx.req;
      break;
    case "/reject-later":
      setTimeout(() => Promise.reject(new Error("rejected where nobody listens")), 1);
      ctx.respond = false;
      break;
    default:
      ctx.throw(404, "nothing here");
  }
});

const server = createServer(app.callback());
const sockets = new WebSocketServer({ server, path: "/chat", handleProtocols: (offered) => [...offered][0] });

sockets.on("connection", (socket, request) => {
  socket.send(`hello ${request.headers["x-forwarded-for"] ?? "you"}`);
  socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
});

server.listen(process.env.PORT, "127.0.0.1");
