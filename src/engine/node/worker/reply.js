// What a program gives back, as frames: a Response, or what a handler returns.

(w) => {
  const { described, whole } = w;

  // How long a reply's second piece is waited for before its first is sent. Node's own streams take 2 for the end.
  const MICROTASKS = 16;
  // A reply up to this goes as one frame.
  const WHOLE_BYTES = 1 << 20;

  // By its shape, since frameworks bring Response classes of their own.
  function isResponse(value) {
    return typeof value === "object" && value !== null && Number.isInteger(value.status) &&
      typeof value.headers?.[Symbol.iterator] === "function";
  }

  const OF_ENCODED = new Set(["content-encoding", "content-length"]);

  /** Whether this came from Node's own `fetch`, which takes an encoding off and leaves the fields that tell of it. */
  function isDecoded(response) {
    if (!response.url || !response.body) return false;
    const encodings = response.headers.get("content-encoding");
    return encodings !== null && encodings.split(",").every((one) => /^\s*((x-)?gzip|deflate|br)\s*$/i.test(one));
  }

  /** Undefined if all is said and done, else a promise of it. */
  function replyWithResponse(exchange, response) {
    const decoded = isDecoded(response);
    const fields = [];
    for (const [name, value] of response.headers) {
      if (!(decoded && OF_ENCODED.has(name))) fields.push(name, value);
    }
    const body = whole(response);
    if (body !== undefined && (body === null || body.length <= WHOLE_BYTES / 4)) {
      return exchange.replyWhole(response.status, fields, body);
    }
    return replyInPieces(exchange, response.status, fields, response.body);
  }

  async function replyInPieces(exchange, status, fields, body) {
    const pieces = piecesOf(body);
    if (pieces === null) return exchange.replyWhole(status, fields, null);
    exchange.reader = pieces;
    const first = await pieces.next();
    if (first.done) return exchange.replyWhole(status, fields, null);
    // A body that was given as a whole ends at once; any other is sent as it comes.
    let now = null;
    const second = pieces.next();
    second.then((next) => (now = next), () => {});
    for (let tries = 0; now === null && tries < MICROTASKS; tries += 1) await null;
    const start = bytesOfPiece(first.value);
    if (now?.done && start.length <= WHOLE_BYTES) return exchange.replyWhole(status, fields, start);
    if (exchange.isOver) return;
    exchange.replyHead(status, fields);
    if (!(await exchange.send(start))) return;
    for (let next = await second; !next.done; next = await pieces.next()) {
      if (!(await exchange.send(bytesOfPiece(next.value)))) return;
    }
    exchange.replyEnd();
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
    throw new TypeError(`the body of the program's reply has ${described(piece)} where bytes belong`);
  }

  /** The answer to a message, from whatever a program returned. */
  async function bytesOfValue(value) {
    if (value === undefined || value === null) return Buffer.alloc(0);
    if (typeof value === "string") return Buffer.from(value);
    if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) return bytesOfPiece(value);
    if (isResponse(value)) return new Uint8Array(await value.arrayBuffer());
    return Buffer.from(json(value));
  }

  function json(value) {
    const text = JSON.stringify(value);
    if (text === undefined) throw new TypeError(`the program returned ${described(value)}, which is no JSON; it may return { status, headers, body }, a string, bytes, a Response, or what JSON has`);
    return text;
  }

  const PARTS = new Set(["status", "statusCode", "headers", "body", "isBase64Encoded"]);

  /**
   * `{ status, headers, body }`, the latter two optional, and nothing else but how the body is written. What a health check
   * says, `{ status: "ok" }`, is no reply.
   */
  function isReply(value) {
    if (typeof value !== "object" || !("status" in value || "statusCode" in value)) return false;
    const keys = Object.keys(value);
    return keys.every((key) => PARTS.has(key)) && (keys.length > 1 || Number.isInteger(value.status ?? value.statusCode));
  }

  /** Replies with what a handler returned. As `replyWithResponse`. */
  function replyWithValue(exchange, value) {
    if (isResponse(value) && typeof value.headers.get === "function") return replyWithResponse(exchange, value);
    if (value === undefined || value === null) return exchange.replyWhole(204, [], null);
    if (!isReply(value)) return replyWithBody(exchange, 200, [], false, value);
    const status = value.status ?? value.statusCode;
    if (!Number.isInteger(status)) throw new TypeError(`the handler returned the status ${described(status)}, which is no integer`);
    const fields = [];
    let hasType = false;
    for (const [name, given] of pairsOf(value.headers)) {
      hasType ||= name.toLowerCase() === "content-type";
      for (const one of Array.isArray(given) ? given : [given]) fields.push(name, String(one));
    }
    const { body } = value;
    const isEncoded = value.isBase64Encoded && typeof body === "string";
    return replyWithBody(exchange, status, fields, hasType, isEncoded ? Buffer.from(body, "base64") : body);
  }

  function pairsOf(headers) {
    if (headers === undefined || headers === null) return [];
    if (typeof headers[Symbol.iterator] === "function" && typeof headers !== "string") return headers;
    if (typeof headers === "object") return Object.entries(headers);
    throw new TypeError(`the program's reply has ${described(headers)} where headers belong`);
  }

  function replyWithBody(exchange, status, fields, hasType, body) {
    const typed = (type) => hasType || fields.push("content-type", type);
    if (body === undefined || body === null) return exchange.replyWhole(status, fields, null);
    if (typeof body === "string") typed("text/plain; charset=utf-8");
    else if (ArrayBuffer.isView(body) || body instanceof ArrayBuffer) {
      typed("application/octet-stream");
      body = bytesOfPiece(body);
    } else if (typeof body.getReader === "function" || body[Symbol.asyncIterator] !== undefined || typeof body.next === "function") {
      typed("text/plain; charset=utf-8");
      return replyInPieces(exchange, status, fields, body);
    } else {
      typed("application/json");
      body = json(body);
    }
    if (body.length <= WHOLE_BYTES / 4) return exchange.replyWhole(status, fields, body);
    return replyInPieces(exchange, status, fields, [bytesOfPiece(body)]);
  }

  Object.assign(w, { isResponse, replyWithResponse, replyWithValue, bytesOfValue });
}
