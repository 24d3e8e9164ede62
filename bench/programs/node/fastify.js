const app = require("fastify")({ bodyLimit: 1 << 20 });

app.addContentTypeParser("*", { parseAs: "buffer" }, (request, body, done) => done(null, body));
app.get("/", (request, reply) => reply.type("text/plain").send("Hello, World!"));
app.post("/echo", (request, reply) => reply.type("application/octet-stream").send(request.body));

module.exports = app;

if (process.env.ALONE) app.listen({ port: Number(process.env.PORT), host: "127.0.0.1" });
