// A web program in the form that the web's own servers have agreed on: a module that exports `fetch`.

const greeting = "Hello from fetch";
let requests = 0;

export default {
  async fetch(request) {
    requests += 1;
    const url = new URL(request.url);
    const route = routes[url.pathname];
    return route ? route(request, url) : new Response(`nothing at ${url.pathname}\n`, { status: 404 });
  },
};

const routes = {
  "/": () => new Response(`${greeting}\n`),

  "/json": async (request) => {
    if (request.method !== "POST") return Response.json({ hello: "world", requests });
    const value = await request.json();
    return Response.json({ received: value }, { status: 201 });
  },

  // The body goes back piece by piece, as it comes.
  "/echo": (request) =>
    new Response(request.body, {
      headers: { "content-type": request.headers.get("content-type") ?? "application/octet-stream" },
    }),

  "/stream": (request, url) => {
    const delay = Number(url.searchParams.get("ms") ?? 0);
    const encoder = new TextEncoder();
    let piece = 0;
    return new Response(
      new ReadableStream({
        async pull(controller) {
          if (delay) await sleep(delay);
          controller.enqueue(encoder.encode(`piece ${piece++}\n`));
          if (piece === 10) controller.close();
        },
      }),
      { headers: { "content-type": "text/plain" } },
    );
  },

  "/cookies": () => {
    const response = new Response("two cookies\n");
    response.headers.append("set-cookie", "a=1; Path=/");
    response.headers.append("set-cookie", "b=2; Path=/");
    return response;
  },

  "/url": (request) => Response.json({ url: request.url, method: request.method, headers: [...request.headers] }),

  "/redirect": (request) => Response.redirect(new URL("/json", request.url), 302),

  "/throw": () => {
    throw new TypeError("this route always throws");
  },

  // Nobody awaits this promise, so nobody catches it.
  "/reject-later": () => {
    setTimeout(() => Promise.reject(new Error("rejected where nobody listens")), 1);
    return new Response("answered\n");
  },

  "/stream-breaks": () =>
    new Response(
      new ReadableStream({
        pull(controller) {
          if (this.sent) return controller.error(new Error("the source of the stream ran dry"));
          this.sent = true;
          controller.enqueue(new TextEncoder().encode("one piece\n"));
        },
      }),
    ),

  "/nothing": () => undefined,

  "/never": () => new Promise(() => {}),

  "/exit": () => process.exit(3),

  "/wait": async (request, url) => {
    await sleep(Number(url.searchParams.get("ms") ?? 1000));
    return new Response("waited\n");
  },

  // Holds the event loop, as a program does that computes.
  "/block": (request, url) => {
    const end = Date.now() + Number(url.searchParams.get("ms") ?? 1000);
    while (Date.now() < end);
    return new Response("blocked\n");
  },

  "/print": () => {
    console.log("a line on stdout");
    return new Response("printed\n");
  },
};

function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
