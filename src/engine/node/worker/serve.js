// Programs that serve HTTP themselves: what they export is put on a port, and whatever server they have, each request is
// an event of its own there, too.

(w) => {
  const { require, current, account } = w;
  const http = require("node:http");
  const net = require("node:net");

  /** A request that a server of the program's own has, by Node's own objects. */
  class Served {
    constructor(request, response) {
      /** By which the log knows the event; the host tells. */
      this.id = request.headers["event-id"];
      this.response = response;
    }

    fail(error) {
      const { response } = this;
      current.run(this, () => process.stderr.write(account(error) + "\n"));
      if (response.writableFinished || response.destroyed) return;
      // What was begun can't be taken back: the client sees that it breaks off.
      if (response.headersSent) return response.destroy();
      for (const name of response.getHeaderNames()) response.removeHeader(name);
      // Nobody knows in which state the connection is left.
      // The reason that it has by now may be that of another status.
      response.writeHead(500, http.STATUS_CODES[500], { "content-type": "application/problem+json", connection: "close" });
      response.end('{\n  "title": "Internal Server Error",\n  "status": 500\n}\n');
    }
  }

  /** A connection that goes on in another protocol, which is one event until it ends. */
  class Switched {
    constructor(request, socket) {
      this.id = request.headers["event-id"];
      this.socket = socket;
    }

    fail(error) {
      current.run(this, () => process.stderr.write(account(error) + "\n"));
      const { socket } = this;
      if (socket.bytesWritten > 0) return socket.destroy();
      socket.end("HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    }
  }

  const EVENTS = new Set(["request", "checkContinue", "checkExpectation"]);

  /** Has every server of the program's own handle each request as an event. */
  function watchServers() {
    const emit = http.Server.prototype.emit;
    http.Server.prototype.emit = function (name, request, response, ...rest) {
      if (name === "upgrade" && response instanceof net.Socket) {
        const event = new Switched(request, response);
        bind(response, event);
        return within(event, () => emit.call(this, name, request, response, ...rest));
      }
      if (!EVENTS.has(name) || !(response instanceof http.ServerResponse)) {
        return emit.call(this, name, request, response, ...rest);
      }
      const event = new Served(request, response);
      if (STAYS) current.enterWith(event);
      else {
        bind(request, event);
        bind(response, event);
      }
      return within(event, () => emit.call(this, name, request, response, ...rest));
    };
  }

  // Later events of the two come from the connection. Up to Node 23 they have what was entered when the request came, until
  // the next one does; from 24 on (AsyncContextFrame) they have nothing.
  const STAYS = Number.parseInt(process.versions.node, 10) < 24;

  function bind(emitter, event) {
    const { emit } = emitter;
    emitter.emit = function (...args) {
      return current.getStore() === event ? emit.apply(this, args) : within(event, () => emit.apply(this, args));
    };
  }

  /** Calls as a part of the event. What it throws would be nobody's behind this, unless the program itself catches all. */
  function within(event, call) {
    try {
      return current.getStore() === event ? call() : current.run(event, call);
    } catch (error) {
      if (process.listenerCount("uncaughtException") > 1) throw error;
      event.fail(error);
      return true;
    }
  }

  /** The server that a program's main export is or has; null if it has none. */
  async function serverOf(main) {
    if (main instanceof net.Server) return { server: main, found: "exports an http.Server" };
    if (main?.server instanceof net.Server) {
      // Fastify, restify: what has been registered is there once it is ready.
      if (!main.server.listening && typeof main.ready === "function") await main.ready();
      return { server: main.server, found: "exports an application with a server" };
    }
    return null;
  }

  /** Where servers of the program listen by now. */
  function portsTaken() {
    const servers = process._getActiveHandles().filter((handle) => handle instanceof net.Server);
    return servers.map((server) => server.address()?.port).filter((port) => port !== undefined);
  }

  /** A server for a main export that answers requests, but has none; null if it does not look like that. */
  function serverFor(main) {
    if (typeof main?.callback === "function" && typeof main.listen === "function") {
      return { server: http.createServer(main.callback()), found: "exports a Koa application" };
    }
    if (typeof main === "function" && typeof main.handle === "function") {
      return { server: http.createServer(main), found: "exports an Express application" };
    }
    if (typeof main === "function" && main.length >= 2) {
      return { server: http.createServer(main), found: "exports a request listener" };
    }
    return null;
  }

  /** Puts a server on a port of the kernel's choice, and gives that port. */
  function listen(server) {
    return new Promise((listening, refused) => {
      // Not by its own `listen`, which may do more than that.
      const acceptor = net.createServer({ noDelay: true }, (socket) => server.emit("connection", socket));
      acceptor.once("error", refused);
      acceptor.listen(0, "127.0.0.1", () => listening(acceptor.address().port));
    });
  }

  Object.assign(w, { watchServers, serverOf, serverFor, portsTaken, listen });
}
