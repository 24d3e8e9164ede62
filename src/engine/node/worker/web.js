// The web's Request and Response, as light as they can be made: Node's own take 20 µs to make and 40 µs to read, most of
// it for streams that nobody looks at. These hold what they were given, and make one of Node's own when somebody asks for
// more than that. Both pass for Node's: `instanceof` says so, and what takes a Request takes these.

(w) => {
  const NodeRequest = globalThis.Request;
  const NodeResponse = globalThis.Response;
  const nodeFetch = globalThis.fetch;

  const WITHOUT_BODY = new Set([101, 103, 204, 205, 304]);
  const decoder = new TextDecoder();

  /** Lets `light` stand in the place of `own`, its statics and prototype included. */
  function standIn(light, own) {
    Object.setPrototypeOf(light, own);
    Object.setPrototypeOf(light.prototype, own.prototype);
    Object.defineProperty(light, "name", { value: own.name });
    Object.defineProperty(light, Symbol.hasInstance, {
      value(value) {
        // Those who extend it mean themselves.
        const prototype = this === light ? own.prototype : this.prototype;
        return typeof value === "object" && value !== null && Object.prototype.isPrototypeOf.call(prototype, value);
      },
    });
  }

  // --- Response

  class Response {
    #body;
    #status = 200;
    #statusText = "";
    #headers;
    /** Node's own, once it is needed; then the body is its alone. */
    #own = null;

    constructor(body = null, init = undefined) {
      const isText = typeof body === "string";
      const isPlain = body === null || isText || body instanceof Uint8Array || body instanceof ArrayBuffer;
      if (!isPlain || !isPlainInit(init, body)) {
        this.#own = new NodeResponse(body, init);
        this.#headers = this.#own.headers;
        this.#status = this.#own.status;
        this.#statusText = this.#own.statusText;
        return;
      }
      // What was given may be changed afterwards; and a Buffer's own slice is no copy.
      this.#body = body === null || isText ? body : body instanceof ArrayBuffer ? body.slice(0) : new Uint8Array(body);
      if (init !== undefined) {
        if (init.status !== undefined) this.#status = init.status;
        if (init.statusText !== undefined) this.#statusText = init.statusText;
        this.#headers = new Headers(init.headers);
      } else this.#headers = new Headers();
      if (isText && !this.#headers.has("content-type")) this.#headers.set("content-type", "text/plain;charset=UTF-8");
    }

    static json(data, init) {
      const text = JSON.stringify(data);
      if (text === undefined) throw new TypeError("The data is not JSON serializable");
      const headers = new Headers(init?.headers);
      if (!headers.has("content-type")) headers.set("content-type", "application/json");
      return new this(text, { ...init, headers });
    }

    /** The body, if it is there as a whole and nobody has read it: a string, bytes or null; otherwise undefined. */
    static whole(response) {
      return #own in response && response.#own === null ? response.#body : undefined;
    }

    get #node() {
      if (this.#own === null) {
        this.#own = new NodeResponse(this.#body, {
          status: this.#status,
          statusText: this.#statusText,
          headers: this.#headers,
        });
      }
      return this.#own;
    }

    get status() { return this.#status; }
    get statusText() { return this.#statusText; }
    get ok() { return this.#status >= 200 && this.#status <= 299; }
    get headers() { return this.#headers; }
    get type() { return "default"; }
    get url() { return ""; }
    get redirected() { return false; }
    get body() { return this.#own === null && this.#body === null ? null : this.#node.body; }
    get bodyUsed() { return this.#own !== null && this.#own.bodyUsed; }
    text() { return this.#node.text(); }
    json() { return this.#node.json(); }
    blob() { return this.#node.blob(); }
    formData() { return this.#node.formData(); }
    arrayBuffer() { return this.#node.arrayBuffer(); }
    bytes() { return this.#node.arrayBuffer().then((buffer) => new Uint8Array(buffer)); }

    clone() {
      const init = { status: this.#status, statusText: this.#statusText, headers: this.#headers };
      return new Response(this.#own === null ? this.#body : this.#own.clone().body, init);
    }
  }

  function isPlainInit(init, body) {
    if (init === undefined) return true;
    if (typeof init !== "object" || init === null) return false;
    const { status = 200, statusText = "" } = init;
    return Number.isInteger(status) && status >= 200 && status <= 599 && (body === null || !WITHOUT_BODY.has(status)) &&
      typeof statusText === "string" && /^[\t\x20-\x7e]*$/.test(statusText);
  }

  standIn(Response, NodeResponse);
  const whole = Response.whole;
  delete Response.whole;

  // --- Request

  // How the body came, which is over where it is a stream; Node's `fetch` refuses requests that have them.
  const OF_CONNECTION = new Set(["transfer-encoding", "expect", "keep-alive"]);

  /** The request of an event. */
  class EventRequest {
    #event;
    #method;
    #url;
    #fields;
    #headers = null;
    /** Bytes, or the stream that they come by, or null. */
    #body;
    #isUsed = false;
    #own = null;

    constructor(event, method, url, fields, body) {
      this.#event = event;
      this.#method = method;
      this.#url = url;
      this.#fields = fields;
      this.#body = body;
    }

    /** What Node's own functions can take, for one of these; anything else as it is. */
    static own(value) {
      return typeof value === "object" && value !== null && #event in value ? value.#node : value;
    }

    get #node() {
      if (this.#own === null) {
        this.#own = new NodeRequest(this.#url, {
          method: this.#method,
          headers: this.headers,
          body: this.#isUsed ? null : this.#body,
          duplex: "half",
          signal: this.#event.signal,
        });
      }
      return this.#own;
    }

    get method() { return this.#method; }
    get url() { return this.#url; }
    get signal() { return this.#event.signal; }
    get body() { return this.#body === null ? null : this.#node.body; }
    get bodyUsed() { return this.#isUsed || (this.#own !== null && this.#own.bodyUsed); }

    get headers() {
      if (this.#headers === null) {
        const pairs = [];
        for (let index = 0; index < this.#fields.length; index += 2) {
          if (!OF_CONNECTION.has(this.#fields[index])) pairs.push([this.#fields[index], this.#fields[index + 1]]);
        }
        this.#headers = new Headers(pairs);
      }
      return this.#headers;
    }

    /** Takes a body that is there as a whole. */
    #take() {
      if (this.#isUsed) throw new TypeError("Body is unusable: Body has already been read");
      this.#isUsed = this.#body !== null;
      return this.#body;
    }

    get #isStream() {
      return this.#own !== null || this.#body instanceof ReadableStream;
    }

    async text() {
      if (this.#isStream) return this.#node.text();
      const body = this.#take();
      return body === null ? "" : decoder.decode(body);
    }

    async json() {
      return JSON.parse(await this.text());
    }

    async arrayBuffer() {
      if (this.#isStream) return this.#node.arrayBuffer();
      const body = this.#take();
      return body === null ? new ArrayBuffer(0) : body.slice().buffer;
    }

    async bytes() { return new Uint8Array(await this.arrayBuffer()); }
    async blob() { return this.#node.blob(); }
    async formData() { return this.#node.formData(); }

    clone() {
      if (this.#isUsed) throw new TypeError("Request.clone: Body has already been consumed.");
      return this.#node.clone();
    }
  }

  // What is left of the standard's properties is the same for every request that came from outside.
  for (const name of ["cache", "credentials", "destination", "duplex", "integrity", "isHistoryNavigation", "isReloadNavigation",
    "keepalive", "mode", "redirect", "referrer", "referrerPolicy"]) {
    if (!(name in NodeRequest.prototype)) continue;
    Object.defineProperty(EventRequest.prototype, name, {
      get() { return ownOf(this)[name]; },
      configurable: true,
      enumerable: true,
    });
  }
  const ownOf = EventRequest.own;
  delete EventRequest.own;
  standIn(EventRequest, NodeRequest);

  class Request extends NodeRequest {
    constructor(input, init) {
      super(ownOf(input), init);
    }
  }
  Object.defineProperty(Request, "name", { value: "Request" });
  standIn(Request, NodeRequest);

  const define = (name, value) =>
    Object.defineProperty(globalThis, name, { value, configurable: true, enumerable: false, writable: true });

  /** Gives the program these instead of Node's. */
  function install() {
    define("Request", Request);
    define("Response", Response);
    define("fetch", function fetch(input, init = undefined) {
      return nodeFetch(ownOf(input), init);
    });
  }

  Object.assign(w, { EventRequest, Response, whole, install });
}
