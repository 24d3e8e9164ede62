// The channel: frames in and out of the socket, in batches, one read and one write for a turn of the loop. The frames are
// described in `engine/worker/frame.rs`.

(w) => {
  const { require, descriptor } = w;
  const fs = require("node:fs");
  const net = require("node:net");

  const kinds = {
    LOAD: 1, REQUEST: 2, MESSAGE: 3, CANCEL: 4, STOP: 5, PING: 6,
    PIECE: 16, END: 17, TAKEN: 18,
    READY: 32, REFUSED: 33, REPLY: 34, HEAD: 35, VALUE: 36, FAILED: 37, PONG: 38,
  };

  const HEADER_BYTES = 9;
  const READ_BYTES = 256 << 10;
  // Below this one copy is cheaper than a list of buffers for the kernel.
  const COPY_BYTES = 64 << 10;
  const EMPTY = Buffer.alloc(0);

  const channel = {
    socket: null,
    rest: EMPTY,
    // Frames that wait to be written stand one behind the other in `room`, up to `used`; what is large stands in `large`
    // instead, with all before it.
    room: Buffer.allocUnsafeSlow(COPY_BYTES),
    used: 0,
    large: [],
    scheduled: false,
    // While the socket takes no more, libuv has the rest of what was to be written.
    blocked: false,
    // To be called once it has not.
    waiter: null,

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
        w.takeFrame(data[position + 8], data.readUInt32LE(position + 4), data, begin, end);
        position = end;
      }
      this.rest = position < data.length ? Buffer.from(data.subarray(position)) : EMPTY;
      return true;
    },

    /** Sends a frame whose payload is `payload`, bytes. */
    write(kind, stream, payload) {
      const { length } = payload;
      this.header(kind, stream, length, 0);
      this.bytes(payload);
      this.schedule();
    },

    /** Sends a reply's head, as JSON behind its length, and its body if there is one, a string or bytes. */
    writeHead(kind, stream, head, body) {
      const headBytes = Buffer.byteLength(head);
      const bodyBytes = body === null ? 0 : typeof body === "string" ? Buffer.byteLength(body) : body.length;
      this.header(kind, stream, 4 + headBytes + bodyBytes, 4 + headBytes);
      this.used = this.room.writeUInt32LE(headBytes, this.used);
      this.used += this.room.write(head, this.used, headBytes);
      if (bodyBytes > 0) {
        if (typeof body !== "string") this.bytes(body);
        else if (bodyBytes <= this.room.length - this.used) this.used += this.room.write(body, this.used, bodyBytes);
        else this.bytes(Buffer.from(body));
      }
      this.schedule();
    },

    /** Begins a frame of `length` bytes; makes room for `following` of them. */
    header(kind, stream, length, following) {
      const needed = HEADER_BYTES + following;
      if (needed > this.room.length - this.used) {
        this.setAside();
        // A head may be larger than all the room there usually is.
        if (needed > this.room.length) this.room = Buffer.allocUnsafeSlow(needed);
      }
      const { room } = this;
      room.writeUInt32LE(length, this.used);
      room.writeUInt32LE(stream, this.used + 4);
      room[this.used + 8] = kind;
      this.used += HEADER_BYTES;
    },

    bytes(bytes) {
      if (bytes.length <= this.room.length - this.used) {
        this.room.set(bytes, this.used);
        this.used += bytes.length;
        return;
      }
      this.setAside();
      this.large.push(bytes);
    },

    /** What was collected so far goes to the list of what is large. */
    setAside() {
      if (this.used === 0) return;
      this.large.push(this.room.subarray(0, this.used));
      this.room = Buffer.allocUnsafeSlow(COPY_BYTES);
      this.used = 0;
    },

    schedule() {
      if (this.scheduled) return;
      // Others may have something to say in this turn of the loop; if there are others.
      if (w.exchanges.size <= 1) return this.flush();
      this.scheduled = true;
      setImmediate(flush);
    },

    flush() {
      this.scheduled = false;
      if (this.blocked || (this.used === 0 && this.large.length === 0)) return;
      let written = 0;
      let length = this.used;
      try {
        // A system call from here; asking libuv for it costs several times as much.
        if (this.large.length === 0) written = fs.writeSync(descriptor, this.room, 0, length);
        else {
          this.setAside();
          length = 0;
          for (const part of this.large) length += part.length;
          written = fs.writevSync(descriptor, this.large);
        }
      } catch (error) {
        if (error.code !== "EAGAIN") return hostIsGone();
      }
      let rest = null;
      if (written < length) {
        this.setAside();
        rest = Buffer.concat(this.large, length).subarray(written);
      }
      this.used = 0;
      if (this.large.length > 0) this.large = [];
      if (rest === null) return;
      this.blocked = true;
      this.socket.write(rest, () => {
        this.blocked = false;
        this.flush();
        if (this.blocked || this.waiter === null) return;
        const { waiter } = this;
        this.waiter = null;
        waiter();
      });
    },

    /** Calls `then` when nothing is left to be written. */
    whenWritten(then) {
      this.waiter = then;
    },

    /** For the last words of a process that is about to end. */
    flushNow() {
      this.setAside();
      const data = Buffer.concat(this.large.splice(0));
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

  const flush = () => channel.flush();

  function hostIsGone() {
    process.exit(0);
  }

  Object.assign(w, { kinds, channel });
}
