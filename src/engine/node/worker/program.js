// From a file to a program that takes events: where it begins, what it offers, and how that is to be called.

(w) => {
  const { require, load: importModule, kinds, channel, Refused, refuse, summary, account } = w;
  const fs = require("node:fs");
  const Module = require("node:module");
  const path = require("node:path");
  const { pathToFileURL } = require("node:url");
  const { types } = require("node:util");

  w.program = null;

  w.loadProgram = async (settings) => {
    w.mark();
    let file;
    try {
      Object.assign(process.env, Object.fromEntries(settings.environment));
      process.chdir(settings.root);
      w.timeout = settings.event_timeout;
      w.bodyLimit = settings.body_limit;
      w.ports = [Number(process.env.PORT), settings.conventional_port];
      const entry = resolveEntry(settings.root, settings.file, settings.start ?? undefined);
      ({ file } = entry);
      process.argv = [process.execPath, file, ...entry.words];
      await prepare(entry);
      w.watchServers();
      w.program = await find(await loadModule(entry));
      w.mark();
    } catch (error) {
      if (error instanceof Refused) refuse(error.message, null);
      else if (error instanceof SyntaxError) {
        // Where it is is known to Node alone, which says it only to stderr and only of errors that nobody catches.
        refuse(hint(file, error) ?? summary(error), null);
        setImmediate(() => {
          throw error;
        });
        return;
      } else refuse(advice(error) ?? summary(error), account(error));
      process.exit(1);
    }
    const { program } = w;
    const isServer = program.server !== undefined;
    w.watchForErrors(isServer);
    if (!isServer) return ready({ listens: false });
    const port = program.server === null ? null : await w.listen(program.server);
    ready({ listens: true, port, own_port: program.ownPort ?? false });
    channel.release();
  };

  function ready(how) {
    w.mark();
    const marks = w.marks.map((mark) => Number(mark / 1000n));
    channel.write(kinds.READY, 0, Buffer.from(JSON.stringify({ found: w.program.found, marks, ...how })));
  }

  // Of a package that is not there: what to do about it.
  function advice(error) {
    if (error?.code !== "MODULE_NOT_FOUND" && error?.code !== "ERR_MODULE_NOT_FOUND") return null;
    const [, name] = /Cannot find (?:module|package) '((?:@[^'/]+\/)?[^'./#][^'/]*)/.exec(error.message) ?? [];
    if (name === undefined) return null;
    const listed = fs.existsSync("package.json") ? "" : ` ${name}`;
    const [first] = summary(error).split("\n");
    return `${first}. In the program's folder, \`npm install${listed}\` installs it beside the program`;
  }

  function hint(file, error) {
    if (/import statement outside a module|Unexpected token 'export'|import\.meta/.test(error.message)) {
      return `${error.message}: ${path.basename(file)} is written as a module; name it .mjs, or put "type": "module" into package.json`;
    }
    return null;
  }

  // --- where it begins

  // What Nitro (and so Nuxt), SvelteKit and Astro build.
  const BUILT = [".output/server/index.mjs", "build/index.js", "dist/server/entry.mjs"];

  /** The file to begin with, of a package the one that `npm start` runs, else its main one; and what goes with it. */
  function resolveEntry(root, file, start = { file: null, words: [], options: [], variables: [] }) {
    const entry = path.resolve(root, file);
    if (!fs.existsSync(entry)) throw new Refused(`there is no ${entry}`);
    if (!fs.statSync(entry).isDirectory()) return { file: entry, words: [], options: [] };
    const description = manifest(entry) ?? {};
    const exported = exportOf(description.exports);
    const found = { ...start, folder: entry };
    try {
      const main = start.file ? path.join(entry, start.file) : exported ? path.join(entry, exported) : "./";
      return { ...found, file: Module.createRequire(path.join(entry, "package.json")).resolve(main) };
    } catch {
      const { main } = description;
      const sources = typeof main === "string" && /\.[cm]?ts$/.test(main) ? [main] : [];
      const usual = ["index", "server", "main", "app"].flatMap((name) => ["mjs", "js", "cjs"].map((ending) => `${name}.${ending}`));
      const { bin } = description;
      const commands = (typeof bin === "string" ? [bin] : Object.values(bin ?? {})).filter((name) => typeof name === "string").slice(0, 1);
      const there = [...sources, ...(start.file ? [] : [...usual, ...BUILT, ...commands])].find((name) => fs.existsSync(path.join(entry, name)));
      if (there !== undefined) return { ...found, file: path.join(entry, there) };
      const files = fs.readdirSync(entry).filter((name) => !name.startsWith(".")).slice(0, 20);
      throw new Refused(`package.json names no file that is there as "main" or "exports", nor as "node FILE" under scripts.start${start.file ? "" : withShell(description.scripts?.start)}; there is: ${files.join(", ")}`);
    }
  }

  // Of a script that takes npm and a shell: how it can have them.
  function withShell(script) {
    if (typeof script !== "string") return "";
    return `, which is "${script}" (to run that: a run.sh with "#!/bin/sh" and "exec npm start", and engine = "executable" and entrypoint = "run.sh" in a polyinit.toml)`;
  }

  /** Does what `npm start` would have before the file is loaded. What the program was given is not replaced. */
  async function prepare({ folder, options, variables = [] }) {
    for (const [name, value] of variables) process.env[name] ??= value;
    const required = folder && Module.createRequire(path.join(folder, "package.json"));
    for (const [name, value] of options) {
      if (name.startsWith("--env-file")) {
        if (name === "--env-file" || fs.existsSync(value)) process.loadEnvFile?.(value);
      } else if (name === "--import" && /^\.{0,2}\//.test(value)) await importModule(pathToFileURL(path.resolve(folder, value)).href);
      else if (name === "--import") await importModule(pathToFileURL(required.resolve(value)).href);
      else required(value);
    }
  }

  /** What `exports` has for ".", by the conditions that Node would go by (nodejs.org/api/packages.html). */
  function exportOf(exported) {
    if (typeof exported === "string") return exported;
    if (Array.isArray(exported)) return exported.map(exportOf).find((found) => found !== null) ?? null;
    if (typeof exported !== "object" || exported === null) return null;
    for (const [key, value] of Object.entries(exported)) {
      if ([".", "node", "import", "require", "module-sync", "default"].includes(key)) {
        const found = exportOf(value);
        if (found !== null) return found;
      }
    }
    return null;
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
  async function loadModule({ file, options }) {
    // What was loaded ahead may know better.
    const isAlone = options.every(([name]) => name.startsWith("--env-file"));
    if (/\.[cm]?ts$/.test(file) && isAlone && !stripsTypes()) throw new Refused(withoutTypes(file));
    const url = pathToFileURL(file).href;
    if (!isCommonJs(file)) return importModule(url);
    try {
      return Module._load(file, null, true);
    } catch (error) {
      // Newer Nodes take what does not say what it is for a module if it is written as one; nothing of it has run yet.
      const isModule = ["ERR_REQUIRE_ESM", "ERR_REQUIRE_ASYNC_MODULE"].includes(error?.code) ||
        (error instanceof SyntaxError && hint(file, error) !== null && looksForModules());
      if (!isModule) throw error;
      return importModule(url);
    }
  }

  function stripsTypes() {
    // Those before 22.10 have the flag and don't say so.
    return process.features.typescript || process.execArgv.includes("--experimental-strip-types");
  }

  function looksForModules() {
    const [major, minor] = process.versions.node.split(".").map(Number);
    return major > 22 || (major === 22 && minor >= 7);
  }

  function withoutTypes(file) {
    return `${path.basename(file)} is TypeScript, which this Node, ${process.version}, can't run: it takes Node 22.6 or newer. Bring such a one (first on PATH), or compile the program to JavaScript`;
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

  // --- what it offers

  /** What the module offers, and how it shall be served; see `engine/node/mod.rs`. */
  async function find(module) {
    const isNamespace = types.isModuleNamespaceObject(module) || module?.__esModule;
    const named = (isNamespace ? module : null) ?? {};
    // An application may take time to be made.
    const main = await (isNamespace ? module.default : module);
    const spelled = (name) => (!isNamespace ? `\`module.exports = { ${name} }\`` : `\`export default { ${name} }\``);
    const method = (name) => {
      if (typeof main?.[name] === "function") return { call: (...args) => main[name](...args), found: spelled(name) };
      if (typeof named[name] === "function") return { call: named[name], found: `\`export function ${name}\`` };
      return null;
    };
    const message = messageOf(method);
    const call = (parts, found) => ({ fetch: null, handler: null, message, ...parts, found });
    const fetch = method("fetch");
    if (fetch !== null) return call({ fetch: fetch.call }, fetch.found);
    const handler = method("handler");
    if (handler !== null) return call({ handler: handler.call }, handler.found);
    const listens = { server: null, found: "serves HTTP itself" };
    // What listens on an address, rather than on all, does so in the next turn.
    await new Promise(setImmediate);
    const own = await w.serverOf(main);
    const taken = w.portsTaken();
    if (w.ports.some((port) => taken.includes(port))) return listens;
    // One that listens where nobody looks for it is served by what it exports.
    const made = own ?? w.serverFor(main);
    if (made !== null) return { ...made, ownPort: taken.length > 0 };
    if (typeof main === "function" && isNamespace) return call({ fetch: main }, "`export default function`");
    if (taken.length > 0) return listens;
    if (message !== null) {
      const none = () => new Response("this program takes messages only\n", { status: 404 });
      return call({ fetch: none }, method("message").found);
    }
    return listens;
  }

  /** `message(value)` takes messages; without it they are events of `handler`. */
  function messageOf(method) {
    const message = method("message");
    if (message !== null) return (text, context) => message.call(parsed(text), context);
    const handler = method("handler");
    if (handler === null) return null;
    return (text, context) => {
      const value = parsed(text);
      return handler.call({ type: "aleph.message", body: text, message: value === text ? null : value }, context);
    };
  }

  function parsed(text) {
    try {
      return JSON.parse(text);
    } catch {
      return text;
    }
  }
}
