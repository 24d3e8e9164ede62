// A `wasi:http/incoming-handler` component (WASI 0.2) in JavaScript: the fetch event of service workers, in the engine that
// componentize-js puts beside it.

addEventListener("fetch", (event) => event.respondWith(answer(event.request)));

const TEXT = { "content-type": "text/plain; charset=utf-8" };

async function answer(request) {
  const url = new URL(request.url);
  switch (url.pathname) {
    case "/":
      return new Response("Hello from JavaScript\n", { headers: TEXT });
    case "/echo":
      return new Response(request.body);
    case "/headers":
      return Response.json({ method: request.method, query: url.search, headers: [...request.headers] });
    case "/fetch": // Needs the host in `hosts`.
      return fetch(url.search.slice(1));
    case "/throw":
      throw new Error("asked to throw by the request for /throw");
    default:
      return new Response(`nothing at ${url.pathname}\n`, { status: 404, headers: TEXT });
  }
}
