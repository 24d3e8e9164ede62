// A plain function of an event, in the form that functions-as-a-service have: no server, no framework.

import { setTimeout as sleep } from "node:timers/promises";

export async function handler(event, context) {
  if (event.type === "aleph.message") return { got: event.message };
  const route = routes[`${event.method} ${event.path}`];
  return route ? route(event, context) : { status: 404, body: `nothing at ${event.path}\n` };
}

const routes = {
  "GET /": () => "Hello from a handler\n",
  "GET /event": (event) => ({ ...event, body: event.body.toString() }),
  "POST /event": (event) => ({ ...event, body: event.body.toString() }),
  "GET /a b": (event) => event.path,
  "GET /json": () => ({ hello: "world" }),
  "GET /bytes": () => Buffer.from([0, 1, 2, 255]),
  "GET /none": () => undefined,
  "GET /full": () => ({
    status: 201,
    headers: { "content-type": "text/x-own", "set-cookie": ["a=1", "b=2"] },
    body: "made\n",
  }),
  "GET /encoded": () => ({ statusCode: 418, body: "AAH/", isBase64Encoded: true }),
  "GET /response": () => new Response("a response\n", { status: 202 }),
  "GET /stream": () => ({
    status: 200,
    body: (async function* () {
      for (let piece = 0; piece < 10; piece++) yield `piece ${piece}\n`;
    })(),
  }),
  "POST /echo": (event) => event.body,
  "GET /context": (event, context) => {
    context.state.count = (context.state.count ?? 0) + 1;
    return { id: typeof context.id, count: context.state.count, remaining: context.remaining() };
  },
  "GET /print": (event, context) => {
    console.log(`printed by ${context.id}`);
    console.error("one line\nand another");
    return "printed\n";
  },
  "GET /throw": () => {
    throw new Error("this route always throws");
  },
  "GET /throw-later": async () => {
    setTimeout(() => {
      throw new Error("thrown where nobody listens");
    }, 1);
    await new Promise(() => {});
  },
  "GET /wait": async (event, context) => {
    try {
      await sleep(60_000, null, { signal: context.signal });
    } catch {
      console.log("the client has gone");
    }
    return "waited\n";
  },
  "GET /status": () => ({ status: "fine", body: "as it should be\n" }),
};
