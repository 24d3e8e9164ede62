// polyinit's Node worker: loads one program and takes its events over a socket.
//
// Between `engine::worker` (the other end of the socket) and the program. Needs nothing but Node 18 or newer. The frames
// are described in `engine/worker/frame.rs`, the heads inside them and what programs may look like in
// `engine/node/mod.rs`. The value of this script is the function that the bootstrap there calls.

"use strict";

(({ channel: descriptor, require, load: importModule }) => {
  const { AsyncLocalStorage } = require("node:async_hooks");
  const fs = require("node:fs");
  const http = require("node:http");
  const Module = require("node:module");
  const net = require("node:net");
  const path = require("node:path");
  const { pathToFileURL } = require("node:url");
  const { inspect, types } = require("node:util");

  const LOAD = 1, REQUEST = 2, MESSAGE = 3, CANCEL = 4, STOP = 5, PING = 6;
  const PIECE = 16, END = 17, TAKEN = 18;
  const READY = 32, REFUSED = 33, REPLY = 34, HEAD = 35, VALUE = 36, FAILED = 37, PONG = 38;

  const HEADER_BYTES = 9;
  const READ_BYTES = 256 << 10;
  // As in frame.rs: the largest piece of a body, and how many bytes of one may be on their way.
  const PIECE_BYTES = 128 << 10;
  const WINDOW_BYTES = 512 << 10;
  // A reply up to this goes as one frame.
  const WHOLE_BYTES = 1 << 20;
  // How long a reply's second piece is waited for before its first is sent. Node's own streams take 2 for the end.
  const MICROTASKS = 16;
  // Below this one copy is cheaper than a list of buffers for the kernel.
  const COPY_BYTES = 64 << 10;
  // The beginning of an account says most in Node; this many characters of it are kept.
  const ACCOUNT_LIMIT = 100_000;

  const EMPTY = Buffer.alloc(0);
  const HERE = "<polyinit worker>";

  /** The program can't be run; the message says why, in the user's terms. */
  class Refused extends Error {}

  // --- the channel: frames in and out of the socket, in batches: one read and one write for a turn of the loop

  const channel = {
    socket: null,
    rest: EMPTY,
    out: [],
    outBytes: 0,
    scheduled: false,
    // While the socket takes no more, libuv has the rest of what was to be written.
    blocked: false,

    open() {
      const buffer = Buffer.allocUnsafeSlow(READ_BYTES);
      this.socket = new net.Socket({
        fd: descriptor,
        readable: true,
        writable: true,
        onread: { buffer, callback: (count) => this.read(buffer.subarray(0, count)) },
      });
      this.socket.on("end", hostIsGone);
      this.socket.on("error", hostIsGone);
    },

    /** `data` is only good until this returns. */
    read(data) {
      if (this.rest.length > 0) data = Buffer.concat([this.rest, data]);
      let position = 0;
      while (data.length - position >= HEADER_BYTES) {
        const begin = position + HEADER_BYTES;
        const end = begin + data.readUInt32LE(position);
        if (end > data.length) break;
        takeFrame(data[position + 8], data.readUInt32LE(position + 4), data.subarray(begin, end));
        position = end;
      }
      this.rest = position < data.length ? Buffer.from(data.subarray(position)) : EMPTY;
      return true;
    },

    write(kind, stream, ...payload) {
      let length = 0;
      for (const part of payload) length += part.length;
      const header = Buffer.allocUnsafe(HEADER_BYTES);
      header.writeUInt32LE(length, 0);
      header.writeUInt32LE(stream, 4);
      header[8] = kind;
      this.out.push(header, ...payload);
      this.outBytes += HEADER_BYTES + length;
      if (this.scheduled) return;
      // Others may have something to say in this turn of the loop; if there are others.
      if (exchanges.size <= 1) return this.flush();
      this.scheduled = true;
      setImmediate(() => this.flush());
    },

    flush() {
      this.scheduled = false;
      if (this.blocked || this.out.length === 0) return;
      const { out, outBytes } = this;
      this.out = [];
      this.outBytes = 0;
      const data = outBytes <= COPY_BYTES ? [Buffer.concat(out, outBytes)] : out;
      let written = 0;
      try {
        // A system call from here; asking libuv for it costs several times as much.
        written = data.length === 1 ? fs.writeSync(descriptor, data[0]) : fs.writevSync(descriptor, data);
      } catch (error) {
        if (error.code !== "EAGAIN") return hostIsGone();
      }
      if (written === outBytes) return;
      this.blocked = true;
      this.socket.write(Buffer.concat(data, outBytes).subarray(written), () => {
        this.blocked = false;
        this.flush();
      });
    },

    /** For the last words of a process that is about to end. */
    flushNow() {
      const data = Buffer.concat(this.out.splice(0));
      for (let written = 0; written < data.length; ) {
        try {
          written += fs.writeSync(descriptor, data, written);
        } catch (error) {
          if (error.code !== "EAGAIN") return;
        }
      }
    },

    /** From here on the channel neither keeps the process alive nor ends it. */
    release() {
      this.flushNow();
      this.socket.removeListener("end", hostIsGone);
      this.socket.removeListener("error", hostIsGone);
      this.socket.on("error", () => {});
      this.socket.unref();
    },
  };

  function hostIsGone() {
    process.exit(0);
  }

  // --- events

  const exchanges = new Map();
  const current = new AsyncLocalStorage();
  let program = null;
  let stopping = false;

  function takeFrame(kind, stream, payload) {
    switch (kind) {
      case REQUEST:
        return begin(new HttpExchange(stream), payload);
      case MESSAGE:
        return begin(new MessageExchange(stream), payload);
      case PING:
        return channel.write(PONG, 0);
      case LOAD:
        return loadProgram(JSON.parse(payload.toString()));
      case STOP:
        stopping = true;
        return leaveIfIdle();
    }
    const exchange = exchanges.get(stream);
    if (exchange === undefined) return;
    switch (kind) {
      case TAKEN:
        return exchange.addCredit(payload.readUInt32LE(0));
      case PIECE:
        return exchange.body?.add(Buffer.from(payload));
      case END:
        return exchange.body?.end();
      case CANCEL:
        return exchange.cancel();
    }
  }

  function begin(exchange, payload) {
    exchanges.set(exchange.stream, exchange);
    current.run(exchange, () => {
      exchange.run(payload).catch((error) => exchange.fail(error)).then(() => exchange.settle());
    });
  }

  /** One event on its way through the program. */
  class Exchange {
    constructor(stream) {
      this.stream = stream;
      this.credit = WINDOW_BYTES;
      this.wake = null;
      this.replied = false;
      this.cancelled = false;
      this.pending = 0;
    }

    /** Nothing is owed to the event any more, unless the program said that it goes on. */
    settle() {
      if (this.pending === 0 && exchanges.delete(this.stream) && stopping) leaveIfIdle();
    }

    fail(error) {
      if (this.cancelled) return;
      const text = account(error);
      if (this.replied) {
        process.stderr.write(text + "\n");
        return;
      }
      this.replied = true;
      channel.write(FAILED, this.stream, fault(summary(error), text));
      this.wake?.();
    }

    addCredit(count) {
      this.credit += count;
      this.wake?.();
    }

    cancel() {
      this.cancelled = true;
      this.wake?.();
    }

    /** Waits until the host has room for so many bytes; tells whether anybody still wants them. */
    async room(count) {
      while (this.credit < count && !this.replied && !this.cancelled) {
        await new Promise((wake) => (this.wake = wake));
        this.wake = null;
      }
      return !this.replied && !this.cancelled;
    }
  }

  class MessageExchange extends Exchange {
    async run(payload) {
      const text = payload.toString();
      if (program.message === null) {
        throw new Refused("the program takes no messages: it exports no `message`");
      }
      const value = await program.message(parsed(text));
      if (this.replied || this.cancelled) return;
      const bytes = await bytesOf(value);
      this.replied = true;
      channel.write(VALUE, this.stream, bytes);
    }
  }

  function parsed(text) {
    try {
      return JSON.parse(text);
    } catch {
      return text;
    }
  }

  async function bytesOf(value) {
    if (value === undefined || value === null) return EMPTY;
    if (typeof value === "string") return Buffer.from(value);
    if (value instanceof Uint8Array) return value;
    if (value instanceof ArrayBuffer) return new Uint8Array(value);
    if (isResponse(value)) return new Uint8Array(await value.arrayBuffer());
    return Buffer.from(JSON.stringify(value));
  }

  class HttpExchange extends Exchange {
    constructor(stream) {
      super(stream);
      this.body = null;
      this.reader = null;
      this.controller = null;
    }

    async run(payload) {
      const request = this.request(payload);
      if (request === null) return;
      const context = { waitUntil: (promise) => this.waitUntil(promise), passThroughOnException() {} };
      const response = await program.fetch(request, process.env, context);
      if (!isResponse(response)) {
        throw new TypeError(`the program's fetch gave ${described(response)} where a Response belongs`);
      }
      if (this.replied || this.cancelled) {
        response.body?.cancel?.().catch(() => {});
        return;
      }
      await this.reply(response);
    }

    request(payload) {
      const headEnd = 4 + payload.readUInt32LE(0);
      const [method, scheme, host, target, fields, whole] = JSON.parse(payload.toString("utf8", 4, headEnd));
      const headers = [];
      for (let index = 0; index < fields.length; index += 2) headers.push([fields[index], fields[index + 1]]);
      const init = { method, headers };
      if (whole) {
        if (payload.length > headEnd) init.body = new Uint8Array(payload.subarray(headEnd));
      } else {
        this.body = new IncomingBody(this);
        init.body = this.body.stream;
        init.duplex = "half";
      }
      // The standard has no such thing as a GET with a body.
      if (method === "GET" || method === "HEAD") delete init.body;
      try {
        return new EventRequest(this, `${scheme}://${host}${target}`, init);
      } catch (error) {
        try {
          // Not every field value that HTTP allows can stand in a URL.
          return new EventRequest(this, `${scheme}://localhost${target}`, init);
        } catch {
          this.refuse(`the Fetch standard has no such request: ${error.cause?.message ?? error.message}\n`);
          return null;
        }
      }
    }

    refuse(text) {
      this.replied = true;
      const head = headOf(501, ["content-type", "text/plain"]);
      channel.write(REPLY, this.stream, ...head, Buffer.from(text));
    }

    waitUntil(promise) {
      this.pending += 1;
      Promise.resolve(promise)
        .catch((error) => this.fail(error))
        .then(() => {
          this.pending -= 1;
          if (this.replied || this.cancelled) this.settle();
        });
    }

    async reply(response) {
      const fields = [];
      for (const [name, value] of response.headers) fields.push(name, value);
      const head = headOf(response.status, fields);
      const pieces = piecesOf(response.body);
      if (pieces === null) return this.replyWhole(head, EMPTY);
      this.reader = pieces;
      const first = await pieces.next();
      if (first.done) return this.replyWhole(head, EMPTY);
      // A body that was given as a whole ends at once; any other is sent as it comes.
      let now = null;
      const second = pieces.next();
      second.then((next) => (now = next), () => {});
      for (let tries = 0; now === null && tries < MICROTASKS; tries += 1) await null;
      const start = bytesOfPiece(first.value);
      if (now?.done && start.length <= WHOLE_BYTES) return this.replyWhole(head, start);
      if (this.replied || this.cancelled) return;
      channel.write(HEAD, this.stream, ...head);
      if (!(await this.send(start))) return;
      for (let next = await second; !next.done; next = await pieces.next()) {
        if (!(await this.send(bytesOfPiece(next.value)))) return;
      }
      if (this.replied || this.cancelled) return;
      this.replied = true;
      channel.write(END, this.stream);
    }

    replyWhole(head, body) {
      if (this.replied || this.cancelled) return;
      this.replied = true;
      channel.write(REPLY, this.stream, ...head, body);
    }

    /** Sends bytes of the body as fast as the client takes them; tells whether there still is one. */
    async send(bytes) {
      for (let position = 0; position < bytes.length; position += PIECE_BYTES) {
        const piece = bytes.subarray(position, position + PIECE_BYTES);
        if (this.credit < piece.length && !(await this.room(piece.length))) return false;
        if (this.replied || this.cancelled) return false;
        this.credit -= piece.length;
        channel.write(PIECE, this.stream, piece);
      }
      return true;
    }

    cancel() {
      super.cancel();
      const reason = new DOMException("the client has gone", "AbortError");
      this.body?.break(reason);
      this.reader?.cancel(reason);
      this.controller?.abort(reason);
    }

    get signal() {
      if (this.controller === null) {
        this.controller = new AbortController();
        if (this.cancelled) this.controller.abort();
      }
      return this.controller.signal;
    }
  }

  /** A request whose signal is made when somebody asks for it: it costs as much as the rest of the request. */
  class EventRequest extends Request {
    #exchange;

    constructor(exchange, url, init) {
      super(url, init);
      this.#exchange = exchange;
    }

    get signal() {
      // A clone has none of ours.
      return #exchange in this ? this.#exchange.signal : super.signal;
    }
  }
  Object.defineProperty(EventRequest, "name", { value: "Request" });

  /** The body of a request, as it comes. */
  class IncomingBody {
    constructor(exchange) {
      this.exchange = exchange;
      this.pieces = [];
      this.ended = false;
      this.broken = null;
      this.wake = null;
      this.stream = new ReadableStream({ pull: (controller) => this.pull(controller) }, { highWaterMark: 0 });
    }

    add(piece) {
      this.pieces.push(piece);
      this.wake?.();
    }

    end() {
      this.ended = true;
      this.wake?.();
    }

    break(reason) {
      this.broken = reason;
      this.wake?.();
    }

    async pull(controller) {
      while (this.pieces.length === 0 && !this.ended && this.broken === null) {
        await new Promise((wake) => (this.wake = wake));
        this.wake = null;
      }
      if (this.broken !== null) return controller.error(this.broken);
      if (this.pieces.length === 0) return controller.close();
      const piece = this.pieces.shift();
      const taken = Buffer.allocUnsafe(4);
      taken.writeUInt32LE(piece.length);
      channel.write(TAKEN, this.exchange.stream, taken);
      controller.enqueue(new Uint8Array(piece.buffer, piece.byteOffset, piece.length));
      if (this.pieces.length === 0 && this.ended) controller.close();
    }
  }

  // By its shape, since frameworks bring Response classes of their own.
  function isResponse(value) {
    return typeof value === "object" && value !== null && Number.isInteger(value.status) &&
      typeof value.headers?.[Symbol.iterator] === "function";
  }

  /** Pieces of a body, one at a time, from a ReadableStream or anything else that can be iterated over. */
  function piecesOf(body) {
    if (body === null || body === undefined) return null;
    if (typeof body.getReader === "function") {
      const reader = body.getReader();
      return { next: () => reader.read(), cancel: (reason) => reader.cancel(reason).catch(() => {}) };
    }
    const iterator = body[Symbol.asyncIterator]?.() ?? body[Symbol.iterator]();
    return { next: async () => iterator.next(), cancel: () => iterator.return?.() };
  }

  function bytesOfPiece(piece) {
    if (piece instanceof Uint8Array) return piece;
    if (typeof piece === "string") return Buffer.from(piece);
    if (ArrayBuffer.isView(piece)) return new Uint8Array(piece.buffer, piece.byteOffset, piece.byteLength);
    if (piece instanceof ArrayBuffer) return new Uint8Array(piece);
    throw new TypeError(`the body of the program's Response has ${described(piece)} where bytes belong`);
  }

  function headOf(status, fields) {
    const head = Buffer.from(JSON.stringify([status, fields]));
    const length = Buffer.allocUnsafe(4);
    length.writeUInt32LE(head.length);
    return [length, head];
  }

  // --- what goes wrong

  function described(value) {
    if (value === null || value === undefined) return String(value);
    const name = value.constructor?.name;
    return typeof value === "object" && name ? `an object of the class ${name}` : `a ${typeof value}`;
  }

  function summary(error) {
    const text = error instanceof Error ? String(error) : `the program threw ${inspect(error, { depth: 1 })}`;
    return (error instanceof Refused ? error.message : text).slice(0, 2000);
  }

  /** The error as Node prints it, without the frames that are not the program's. */
  function account(error) {
    const lines = inspect(error).split("\n");
    const own = lines.filter((line) => !/^\s+at .*(<polyinit worker>|node:internal\/)/.test(line));
    return own.join("\n").slice(0, ACCOUNT_LIMIT);
  }

  function fault(message, traceback) {
    return Buffer.from(JSON.stringify({ message, traceback }));
  }

  function refuse(message, traceback) {
    channel.write(REFUSED, 0, fault(message, traceback));
    channel.flushNow();
  }

  /** An error that nobody caught is the failure of the event that it belongs to, if that can be told, and of no other. */
  function watchForErrors() {
    process.on("unhandledRejection", (reason) => {
      const exchange = current.getStore();
      if (exchange !== undefined) exchange.fail(reason);
      else process.stderr.write(`a promise of no event was rejected: ${account(reason)}\n`);
    });
    process.on("uncaughtException", (error) => {
      const exchange = current.getStore();
      if (exchange !== undefined) return exchange.fail(error);
      process.stderr.write(`${account(error)}\n`);
      process.exit(1);
    });
  }

  // --- the program's life

  /** Ends when the last event has: as the program wants to, if it listens to SIGTERM. */
  function leaveIfIdle() {
    if (exchanges.size > 0) return;
    channel.flushNow();
    if (process.listenerCount("SIGTERM") === 0) process.exit(0);
    channel.socket.unref();
    process.emit("SIGTERM", "SIGTERM");
  }

  async function loadProgram(settings) {
    let file;
    try {
      Object.assign(process.env, Object.fromEntries(settings.environment));
      process.chdir(settings.root);
      file = resolveEntry(settings.root, settings.file);
      process.argv = [process.execPath, file];
      program = find(await loadModule(file));
    } catch (error) {
      if (error instanceof Refused) refuse(error.message, null);
      else if (error instanceof SyntaxError) {
        // Where it is is known to Node alone, which says it only to stderr and only of errors that nobody catches.
        refuse(hint(file, error) ?? summary(error), null);
        setImmediate(() => {
          throw error;
        });
        return;
      } else refuse(summary(error), account(error));
      process.exit(1);
    }
    if (program.serve !== null) {
      const server = net.createServer(program.serve).listen(0, "127.0.0.1", () => {
        ready({ listens: true, port: server.address().port });
        channel.release();
      });
      return;
    }
    if (program.fetch === null) {
      ready({ listens: true });
      channel.release();
      return;
    }
    watchForErrors();
    ready({ listens: false });
  }

  function ready(how) {
    channel.write(READY, 0, Buffer.from(JSON.stringify({ found: program.found, ...how })));
  }

  function hint(file, error) {
    if (/import statement outside a module|Unexpected token 'export'|import\.meta/.test(error.message)) {
      return `${error.message}: ${path.basename(file)} is written as a module; name it .mjs, or put "type": "module" into package.json`;
    }
    return null;
  }

  /** The file to begin with; of a package the one that `npm start` runs, else its main one. */
  function resolveEntry(root, file) {
    const entry = path.resolve(root, file);
    if (!fs.existsSync(entry)) throw new Refused(`there is no ${entry}`);
    if (!fs.statSync(entry).isDirectory()) return entry;
    const start = manifest(entry)?.scripts?.start;
    const named = /^node\s+([^\s-]\S*)$/.exec(typeof start === "string" ? start.trim() : "")?.[1];
    try {
      return Module.createRequire(path.join(entry, "package.json")).resolve(named ? path.join(entry, named) : "./");
    } catch {
      const files = fs.readdirSync(entry).filter((name) => !name.startsWith(".")).slice(0, 20);
      throw new Refused(`package.json names no file that is there as "main", nor as "node FILE" under scripts.start; there is: ${files.join(", ")}`);
    }
  }

  function manifest(folder) {
    const file = path.join(folder, "package.json");
    let text;
    try {
      text = fs.readFileSync(file, "utf8");
    } catch {
      return null;
    }
    try {
      return JSON.parse(text);
    } catch (error) {
      throw new Refused(`${file} is no JSON: ${error.message}`);
    }
  }

  /** Loads the file as `node FILE` would, which is to say as the main module. */
  async function loadModule(file) {
    const url = pathToFileURL(file).href;
    if (!isCommonJs(file)) return importModule(url);
    try {
      return Module._load(file, null, true);
    } catch (error) {
      if (error?.code !== "ERR_REQUIRE_ESM" && error?.code !== "ERR_REQUIRE_ASYNC_MODULE") throw error;
      return importModule(url);
    }
  }

  function isCommonJs(file) {
    switch (path.extname(file)) {
      case ".js":
      case ".ts":
        for (let folder = path.dirname(file); ; folder = path.dirname(folder)) {
          const found = manifest(folder);
          if (found !== null) return found.type !== "module";
          if (folder === path.dirname(folder)) return true;
        }
      case ".mjs":
      case ".mts":
        return false;
      default:
        return true;
    }
  }

  /** What the module offers, and how it shall be served; see `engine/node/mod.rs`. */
  function find(module) {
    const isNamespace = types.isModuleNamespaceObject(module) || module?.__esModule;
    const named = (isNamespace ? module : null) ?? {};
    const main = isNamespace ? module.default : module;
    const spelled = (name) => (!isNamespace ? `\`module.exports = { ${name} }\`` : `\`export default { ${name} }\``);
    const method = (name) => {
      if (typeof main?.[name] === "function") return { call: (...args) => main[name](...args), found: spelled(name) };
      if (typeof named[name] === "function") return { call: named[name], found: `\`export function ${name}\`` };
      return null;
    };
    const fetch = method("fetch");
    const message = method("message");
    const call = (fetch, found) => ({ fetch, message: message?.call ?? null, serve: null, found });
    if (fetch !== null) return call(fetch.call, fetch.found);
    const listens = { fetch: null, message: null, serve: null, found: "serves HTTP itself" };
    if (main instanceof net.Server) {
      if (main.listening) return listens;
      return { ...listens, serve: (socket) => main.emit("connection", socket), found: "exports an http.Server" };
    }
    if (process.getActiveResourcesInfo().includes("TCPServerWrap")) return listens;
    if (typeof main === "function" && (main.length >= 2 || typeof main.handle === "function")) {
      const server = http.createServer(main);
      return { ...listens, serve: (socket) => server.emit("connection", socket), found: "exports a request listener" };
    }
    if (typeof main === "function" && isNamespace) return call(main, "`export default function`");
    if (message !== null) {
      return call(() => new Response("this program takes messages only\n", { status: 404 }), message.found);
    }
    return listens;
  }

  /** Loads what events will need, while there is nothing else to do. */
  function warmUp() {
    new Response("").text();
    new AbortController();
    importModule("data:text/javascript,");
  }

  /** Takes away what `node -e` adds to what a program finds, started by its own name. */
  function cleanUp() {
    process.execArgv = [];
    const { webcrypto } = require("node:crypto");
    for (const name of ["module", "exports", "require", "__filename", "__dirname", ...Module.builtinModules]) {
      if (name !== "console" && name !== "process") delete globalThis[name];
    }
    if (Number.parseInt(process.versions.node, 10) >= 19) {
      Object.defineProperty(globalThis, "crypto", { value: webcrypto, configurable: true, enumerable: true, writable: true });
    }
  }

  cleanUp();
  channel.open();
  setImmediate(() => {
    if (program === null) warmUp();
  });
})
