// One event on its way through the program: what of it is still owed, what of its bodies may be sent, and its end.

(w) => {
  const { kinds, channel, current, account, summary, fault } = w;

  // As in frame.rs: the largest piece of a body, and how many bytes of one may be on their way.
  const PIECE_BYTES = 128 << 10;
  const WINDOW_BYTES = 512 << 10;
  // The largest payload, which the answer to a message may be.
  const PAYLOAD_BYTES = 16 << 20;
  const EMPTY = Buffer.alloc(0);

  const exchanges = new Map();
  let isStopping = false;

  /** Gives `run` a new event; it may return a promise. */
  function begin(exchange) {
    exchanges.set(exchange.stream, exchange);
    current.run(exchange, run, exchange);
  }

  function run(exchange) {
    let running;
    try {
      running = exchange.run();
    } catch (error) {
      exchange.fail(error);
    }
    if (running === undefined) return exchange.settle();
    running.then(exchange.settle.bind(exchange), (error) => {
      exchange.fail(error);
      exchange.settle();
    });
  }

  /** The host wants an end: it comes with that of the last event. A program may take a second SIGTERM as a sign of haste. */
  function stop() {
    if (isStopping) return;
    isStopping = true;
    leaveIfIdle();
  }

  /** Ends as the program wants to, if it listens to SIGTERM. */
  function leaveIfIdle() {
    if (exchanges.size > 0) return;
    // What is on its way still has to get there.
    if (channel.blocked) return channel.whenWritten(leaveIfIdle);
    channel.flushNow();
    if (process.listenerCount("SIGTERM") === 0) process.exit(0);
    channel.socket.unref();
    process.emit("SIGTERM", "SIGTERM");
  }

  class Exchange {
    constructor(stream, id) {
      this.stream = stream;
      /** By which the log knows the event. */
      this.id = id;
      this.credit = WINDOW_BYTES;
      this.wake = null;
      /** The reply's head has gone out: what fails now, the client can't be told. */
      this.begun = false;
      this.replied = false;
      this.cancelled = false;
      this.pending = 0;
      this.controller = null;
      /** The body of the request, where it comes in pieces. */
      this.body = null;
      /** What the reply's body is read from. */
      this.reader = null;
    }

    get isOver() {
      return this.replied || this.cancelled;
    }

    /** Nothing is owed to the event any more, unless the program said that it goes on. */
    settle() {
      if (this.pending === 0 && exchanges.delete(this.stream) && isStopping) leaveIfIdle();
    }

    fail(error) {
      const text = account(error);
      // That nobody waits is the reason of most errors then, but not of all.
      if (this.cancelled) return error?.name === "AbortError" ? undefined : this.tell(text);
      if (this.replied) return this.tell(text);
      if (this.begun) this.tell(text);
      this.replied = true;
      channel.write(kinds.FAILED, this.stream, fault(summary(error), text));
      this.wake?.();
    }

    /** Writes to the log: the event's own lines are marked as such, whoever calls. */
    tell(text) {
      current.run(this, () => process.stderr.write(text + "\n"));
    }

    cancel() {
      this.cancelled = true;
      this.wake?.();
      // What the program does when it hears of that is a part of the event, errors included.
      current.run(this, () => {
        const reason = new DOMException("the client has gone", "AbortError");
        try {
          this.body?.break(reason);
          this.reader?.cancel(reason);
          this.controller?.abort(reason);
        } catch (error) {
          this.fail(error);
        }
      });
    }

    get signal() {
      if (this.controller === null) {
        this.controller = new AbortController();
        if (this.cancelled) this.controller.abort();
      }
      return this.controller.signal;
    }

    waitUntil(promise) {
      this.pending += 1;
      Promise.resolve(promise)
        .catch((error) => this.tell(account(error)))
        .then(() => {
          this.pending -= 1;
          if (this.isOver) this.settle();
        });
    }

    // --- the reply

    /** `fields` are names and values by turns. */
    replyWhole(status, fields, body) {
      if (this.isOver) return;
      this.replied = true;
      channel.writeHead(kinds.REPLY, this.stream, JSON.stringify([status, fields]), body);
    }

    replyHead(status, fields) {
      this.begun = true;
      channel.writeHead(kinds.HEAD, this.stream, JSON.stringify([status, fields]), null);
    }

    replyEnd() {
      if (this.isOver) return;
      this.replied = true;
      channel.write(kinds.END, this.stream, EMPTY);
    }

    replyValue(bytes) {
      if (this.isOver) return;
      if (bytes.length > PAYLOAD_BYTES) {
        throw new RangeError(`the answer to the message has ${bytes.length} bytes, where ${PAYLOAD_BYTES} is the limit`);
      }
      this.replied = true;
      channel.write(kinds.VALUE, this.stream, bytes);
    }

    /** Sends bytes of the body as fast as the client takes them; tells whether there still is one. */
    async send(bytes) {
      for (let position = 0; position < bytes.length; position += PIECE_BYTES) {
        const piece = bytes.subarray(position, position + PIECE_BYTES);
        if (this.credit < piece.length && !(await this.room(piece.length))) return false;
        if (this.isOver) return false;
        this.credit -= piece.length;
        channel.write(kinds.PIECE, this.stream, piece);
      }
      return true;
    }

    /** Waits until the host has room for so many bytes; tells whether anybody still wants them. */
    async room(count) {
      while (this.credit < count && !this.isOver) {
        await new Promise((wake) => (this.wake = wake));
        this.wake = null;
      }
      return !this.isOver;
    }

    addCredit(count) {
      this.credit += count;
      this.wake?.();
    }
  }

  /** The body of a request, as it comes. */
  class IncomingBody {
    constructor(exchange) {
      this.exchange = exchange;
      this.pieces = [];
      this.ended = false;
      this.broken = null;
      this.wake = null;
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

    /** The next piece, or null at the end. */
    async next() {
      while (this.pieces.length === 0 && !this.ended && this.broken === null) {
        await new Promise((wake) => (this.wake = wake));
        this.wake = null;
      }
      if (this.broken !== null) throw this.broken;
      if (this.pieces.length === 0) return null;
      const piece = this.pieces.shift();
      const taken = Buffer.allocUnsafe(4);
      taken.writeUInt32LE(piece.length);
      channel.write(kinds.TAKEN, this.exchange.stream, taken);
      return piece;
    }

    /** All of it, up to `limit` bytes; null if it is more. */
    async whole(limit) {
      const pieces = [];
      let length = 0;
      for (let piece = await this.next(); piece !== null; piece = await this.next()) {
        length += piece.length;
        if (length > limit) return null;
        pieces.push(piece);
      }
      return pieces.length === 1 ? pieces[0] : Buffer.concat(pieces, length);
    }

    stream() {
      const pull = async (controller) => {
        let piece;
        try {
          piece = await this.next();
        } catch (error) {
          return controller.error(error);
        }
        if (piece === null) return controller.close();
        controller.enqueue(new Uint8Array(piece.buffer, piece.byteOffset, piece.length));
        if (this.pieces.length === 0 && this.ended) controller.close();
      };
      return new ReadableStream({ pull }, { highWaterMark: 0 });
    }
  }

  Object.assign(w, { exchanges, begin, stop, Exchange, IncomingBody });
}
