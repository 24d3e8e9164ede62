Bun.serve({
  hostname: process.env.HOST ?? "0.0.0.0",
  port: Number(process.env.PORT ?? 8080),
  async fetch(request: Request): Promise<Response> {
    const { pathname, search } = new URL(request.url);
    return Response.json({
      language: "Bun",
      method: request.method,
      uri: pathname + search,
      body: await request.text(),
      forwarded: request.headers.get("x-forwarded-for"),
    });
  },
});
