const [hostname, port] = [Deno.env.get("HOST") ?? "0.0.0.0", Number(Deno.env.get("PORT") ?? 8080)];

Deno.serve({ hostname, port, onListen: () => {} }, async (request: Request): Promise<Response> => {
  const { pathname, search } = new URL(request.url);
  return Response.json({
    language: "Deno",
    method: request.method,
    uri: pathname + search,
    body: await request.text(),
    forwarded: request.headers.get("x-forwarded-for"),
  });
});
