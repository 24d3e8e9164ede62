// The worker's beginning, once all of its parts are there.

(w) => {
  const { require, load: importModule } = w;
  const Module = require("node:module");

  /** Loads what events will need, while there is nothing else to do. */
  function warmUp() {
    new Response("").text();
    new AbortController();
    importModule("data:text/javascript,");
  }

  /** Takes away what `node -e` adds to what a program finds, started by its own name. */
  function cleanUp() {
    process.execArgv = process.execArgv.filter((argument, at, all) => argument !== "-e" && all[at - 1] !== "-e");
    const { webcrypto } = require("node:crypto");
    for (const name of ["module", "exports", "require", "__filename", "__dirname", ...Module.builtinModules]) {
      if (name !== "console" && name !== "process") delete globalThis[name];
    }
    // Behind the script of its `-e`, Node puts back the `module` that was there before.
    process.nextTick(() => delete globalThis.module);
    if (Number.parseInt(process.versions.node, 10) >= 19) {
      Object.defineProperty(globalThis, "crypto", { value: webcrypto, configurable: true, enumerable: true, writable: true });
    }
  }

  cleanUp();
  w.install();
  w.markLines("stdout");
  w.markLines("stderr");
  w.channel.open();
  w.mark();
  setImmediate(() => {
    if (w.program === null) warmUp();
  });
}
