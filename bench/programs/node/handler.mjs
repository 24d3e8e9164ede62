export function handler(event) {
  if (event.path === "/echo") return event.body;
  return { status: 200, headers: { "content-type": "text/plain" }, body: "Hello, World!" };
}
