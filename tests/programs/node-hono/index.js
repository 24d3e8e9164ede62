// A counter, with Hono: its application has a `fetch`.

import { Hono } from "hono";
import { stream, streamSSE } from "hono/streaming";
import { cors } from "hono/cors";
import { etag } from "hono/etag";
import { HTTPException } from "hono/http-exception";

const app = new Hono();
const counters = new Map();

app.use("/api/*", cors());
app.use("/tagged", etag());

app.get("/", (c) => c.text("Hello from Hono\n"));

app.get("/api/counters/:name", (c) => c.json({ value: counters.get(c.req.param("name")) ?? 0 }));

app.post("/api/counters/:name", async (c) => {
  const { by } = await c.req.json();
  const name = c.req.param("name");
  counters.set(name, (counters.get(name) ?? 0) + by);
  return c.json({ value: counters.get(name) }, 201);
});

app.post("/form", async (c) => {
  const form = await c.req.parseBody();
  return c.json(form);
});

app.post("/echo", (c) => new Response(c.req.raw.body, { headers: { "content-type": "application/octet-stream" } }));

app.get("/tagged", (c) => c.text("the same each time"));

app.get("/stream", (c) => stream(c, async (out) => {
  for (let piece = 0; piece < 10; piece++) await out.write(`piece ${piece}\n`);
}));

app.get("/events", (c) => streamSSE(c, async (out) => {
  for (let id = 0; id < 3; id++) await out.writeSSE({ data: `event ${id}`, id: String(id) });
}));

app.get("/clone", async (c) => {
  const copy = new Request(c.req.raw, { headers: { "x-added": "1" } });
  const own = c.req.raw instanceof Request && c.req.raw.clone() instanceof Request;
  return c.json({ url: copy.url, added: copy.headers.get("x-added"), own });
});

app.get("/teapot", () => {
  throw new HTTPException(418, { message: "short and stout" });
});

app.notFound((c) => c.text("nothing here", 404));

export default app;
