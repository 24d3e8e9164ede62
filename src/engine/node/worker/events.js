// From frames to calls of the program: a request for `fetch`, an event for `handler`, a message for either.

(w) => {
  const { kinds, channel, described, Refused, Exchange, IncomingBody, EventRequest } = w;
  const { isResponse, replyWithResponse, replyWithValue, bytesOfValue } = w;

  /** Takes one frame, whose payload is `data` from `begin` to `end`: good until this returns. */
  w.takeFrame = (kind, stream, data, begin, end) => {
    switch (kind) {
      case kinds.REQUEST:
        return w.begin(requestOf(stream, data, begin, end));
      case kinds.MESSAGE:
        return w.begin(messageOf(stream, data.toString("utf8", begin, end)));
      case kinds.PING:
        return channel.write(kinds.PONG, 0, Buffer.alloc(0));
      case kinds.LOAD:
        return w.loadProgram(JSON.parse(data.toString("utf8", begin, end)));
      case kinds.STOP:
        return w.stop();
    }
    const exchange = w.exchanges.get(stream);
    if (exchange === undefined) return;
    switch (kind) {
      case kinds.TAKEN:
        return exchange.addCredit(data.readUInt32LE(begin));
      case kinds.PIECE:
        return exchange.body?.add(Buffer.from(data.subarray(begin, end)));
      case kinds.END:
        return exchange.body?.end();
      case kinds.CANCEL:
        return exchange.cancel();
    }
  };

  function requestOf(stream, data, begin, end) {
    const headEnd = begin + 4 + data.readUInt32LE(begin);
    const head = JSON.parse(data.toString("utf8", begin + 4, headEnd));
    const body = headEnd < end ? new Uint8Array(data.subarray(headEnd, end)) : null;
    return new (w.program.fetch !== null ? FetchExchange : HandlerExchange)(stream, head, body);
  }

  class HttpExchange extends Exchange {
    /** `head` is as in `Node::encode_request`; `body` is for a whole one. */
    constructor(stream, head, body) {
      super(stream, head[6]);
      this.method = head[0];
      this.scheme = head[1];
      this.host = head[2];
      this.target = head[3];
      this.fields = head[4];
      this.client = head[7];
      this.given = body;
      if (!head[5]) this.body = new IncomingBody(this);
    }
  }

  /** What a program may know beside its event. */
  class Context {
    #exchange;
    #deadline = performance.now() + w.timeout * 1000;

    constructor(exchange) {
      this.#exchange = exchange;
    }

    /** The event's id, as it stands before the lines that are printed on its behalf. */
    get id() { return this.#exchange.id; }
    /** Of this process's own, the same for every event. */
    get state() { return STATE; }
    /** Aborted when the client goes away. */
    get signal() { return this.#exchange.signal; }
    /** Seconds until nobody waits for this event any more. */
    remaining() { return Math.max(0, (this.#deadline - performance.now()) / 1000); }
    waitUntil(promise) { this.#exchange.waitUntil(promise); }
    passThroughOnException() {}
  }

  const STATE = {};

  // --- fetch

  // The Fetch standard has no such requests.
  const FORBIDDEN = new Set(["CONNECT", "TRACE", "TRACK"]);

  class FetchExchange extends HttpExchange {
    run() {
      if (FORBIDDEN.has(this.method.toUpperCase())) {
        const text = `the Fetch standard has no such request: '${this.method}' HTTP method is unsupported.\n`;
        return this.replyWhole(501, ["content-type", "text/plain"], text);
      }
      const response = w.program.fetch(this.request(), process.env, new Context(this));
      return typeof response?.then === "function" ? this.later(response) : this.reply(response);
    }

    async later(response) {
      return this.reply(await response);
    }

    reply(response) {
      if (!isResponse(response)) {
        throw new TypeError(`the program's fetch gave ${described(response)} where a Response belongs`);
      }
      if (this.isOver) {
        response.body?.cancel?.().catch(() => {});
        return undefined;
      }
      return replyWithResponse(this, response);
    }

    request() {
      // The standard has no such thing as a GET with a body.
      const isBare = this.method === "GET" || this.method === "HEAD";
      const body = isBare ? null : this.body === null ? this.given : this.body.stream();
      return new EventRequest(this, this.method, this.url(), this.fields, body);
    }

    url() {
      try {
        // One with a slash or a question mark would make a path of its own before the request's, as would none.
        if (/^[^/\\?#@]+$/.test(this.host)) return new URL(`${this.scheme}://${this.host}${this.target}`).href;
      } catch {
        // Not every field value that HTTP allows can stand in a URL.
      }
      return new URL(`${this.scheme}://localhost${this.target}`).href;
    }
  }

  // --- handler

  class HandlerExchange extends HttpExchange {
    run() {
      if (this.body !== null) return this.later();
      return this.handle(this.given === null ? Buffer.alloc(0) : Buffer.from(this.given.buffer));
    }

    async later() {
      const body = await this.body.whole(w.bodyLimit);
      if (body !== null) return this.handle(body);
      return this.replyWhole(413, ["content-type", "text/plain"], `a handler gets its body whole, and ${w.bodyLimit} bytes at most\n`);
    }

    handle(body) {
      const value = w.program.handler(this.event(body), new Context(this));
      if (typeof value?.then === "function") return value.then((value) => this.reply(value));
      return this.reply(value);
    }

    reply(value) {
      return this.isOver ? undefined : replyWithValue(this, value);
    }

    event(body) {
      const mark = this.target.indexOf("?");
      const path = mark < 0 ? this.target : this.target.slice(0, mark);
      const queryString = mark < 0 ? "" : this.target.slice(mark + 1);
      // Any token is a field's name, `__proto__` and `constructor` included.
      const headers = new Map();
      const { fields } = this;
      for (let index = 0; index < fields.length; index += 2) {
        const name = fields[index];
        const between = name === "cookie" ? "; " : ", ";
        const before = headers.get(name);
        headers.set(name, before === undefined ? fields[index + 1] : before + between + fields[index + 1]);
      }
      return {
        type: "http",
        method: this.method,
        path: decoded(path),
        query: queryOf(queryString),
        query_string: queryString,
        headers: Object.fromEntries(headers),
        body,
        client: this.client,
      };
    }
  }

  function decoded(path) {
    if (!path.includes("%")) return path;
    try {
      return decodeURIComponent(path);
    } catch {
      return path;
    }
  }

  /** The last of several values wins; all of them are in `query_string`. */
  function queryOf(text) {
    return text === "" ? {} : Object.fromEntries(new URLSearchParams(text));
  }

  // --- messages

  /** `payload` is the event's id and, behind a line's end, the message. */
  function messageOf(stream, payload) {
    const end = payload.indexOf("\n");
    return new MessageExchange(stream, payload.slice(0, end), payload.slice(end + 1));
  }

  class MessageExchange extends Exchange {
    constructor(stream, id, text) {
      super(stream, id);
      this.text = text;
    }

    async run() {
      const { message } = w.program;
      if (message === null) throw new Refused("the program takes no messages: it exports neither `message` nor `handler`");
      const value = await message(this.text, new Context(this));
      if (this.isOver) return;
      this.replyValue(await bytesOfValue(value));
    }
  }
}
