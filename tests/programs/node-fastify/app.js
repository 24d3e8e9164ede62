// A dictionary, with Fastify: plugins, schemas, hooks. What is exported is the promise of an application.

import fastify from "fastify";
import { Readable } from "node:stream";

async function build() {
  const app = fastify({ logger: false });
  const words = new Map([["init", "the first process"]]);

  app.addHook("onSend", async (request, reply) => {
    reply.header("x-served-by", "fastify");
  });

  app.get("/", async () => ({ hello: "fastify" }));

  app.put("/words/:word", {
    schema: {
      body: { type: "object", required: ["meaning"], properties: { meaning: { type: "string" } } },
    },
    handler: async (request, reply) => {
      words.set(request.params.word, request.body.meaning);
      return reply.code(201).send({ word: request.params.word, meaning: request.body.meaning });
    },
  });

  app.get("/words/:word", async (request, reply) => {
    const meaning = words.get(request.params.word);
    return meaning === undefined ? reply.code(404).send({ error: "unknown" }) : { meaning };
  });

  app.get("/stream", (request, reply) => {
    reply.type("text/plain").send(Readable.from((function* () {
      for (let piece = 0; piece < 10; piece++) yield `piece ${piece}\n`;
    })()));
  });

  app.get("/throw", async () => {
    throw new Error("a route threw");
  });

  await app.register(async (nested) => {
    nested.get("/nested/ready", async () => "ready");
  });
  return app;
}

export default build();
