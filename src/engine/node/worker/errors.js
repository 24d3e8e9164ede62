// What goes wrong in a program, in words: for the host, for the log, and for the event that it belongs to.

(w) => {
  const { AsyncLocalStorage } = w.require("node:async_hooks");
  const { inspect } = w.require("node:util");

  // The beginning of an account says most in Node; this many characters of it are kept.
  const ACCOUNT_LIMIT = 100_000;
  const { kinds, channel } = w;

  /** The program can't be run; the message says why, in the user's terms. */
  class Refused extends Error {}

  /** The event that the present piece of code works on: an object with `id` and `fail`. */
  const current = new AsyncLocalStorage();

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
    const own = lines.filter((line) => !/^\s+at .*(<polyinit worker>|node:internal\/|node:async_hooks)/.test(line));
    return own.join("\n").slice(0, ACCOUNT_LIMIT);
  }

  function fault(message, traceback) {
    return Buffer.from(JSON.stringify({ message, traceback }));
  }

  function refuse(message, traceback) {
    channel.write(kinds.REFUSED, 0, fault(message, traceback));
    channel.flushNow();
  }

  /** An error that nobody caught is the failure of the event that it belongs to, if that can be told, and of no other. */
  function watchForErrors(isServer) {
    process.on("unhandledRejection", (reason) => {
      const event = current.getStore();
      if (event !== undefined) return event.fail(reason);
      if (process.listenerCount("unhandledRejection") > 1) return;
      process.stderr.write(`a promise of no event was rejected: ${account(reason)}\n`);
      // As Node has it, for a program that was written to be started by it.
      if (isServer) process.exit(1);
    });
    process.on("uncaughtException", (error) => {
      const event = current.getStore();
      if (event !== undefined) return event.fail(error);
      if (process.listenerCount("uncaughtException") > 1) return;
      process.stderr.write(`${account(error)}\n`);
      process.exit(1);
    });
  }

  /** Lines that the program prints get a mark with the id of their event, which the host takes off again. */
  function markLines(name) {
    const property = Object.getOwnPropertyDescriptor(process, name);
    let marked = null;
    // Node makes them when they are first used, which many programs never do.
    Object.defineProperty(process, name, { ...property, get: () => (marked ??= marking(property.get.call(process))) });
  }

  function marking(stream) {
    const write = stream.write;
    let isFresh = true;
    stream.write = function (chunk, ...rest) {
      const id = current.getStore()?.id;
      const isText = typeof chunk === "string";
      if (chunk.length === 0 || (!isText && !(chunk instanceof Uint8Array))) return write.call(this, chunk, ...rest);
      const begins = isFresh;
      isFresh = isText ? chunk.endsWith("\n") : chunk[chunk.length - 1] === 10;
      if (id === undefined) return write.call(this, chunk, ...rest);
      const mark = `\x1e${id}\x1f`;
      const text = isText ? chunk : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length).toString("latin1");
      const marked = (begins ? mark : "") + text.replace(/\n(?=[^])/g, `\n${mark}`);
      return write.call(this, isText ? marked : Buffer.from(marked, "latin1"), ...rest);
    };
    return stream;
  }

  Object.assign(w, { Refused, current, described, summary, account, fault, refuse, watchForErrors, markLines });
}
