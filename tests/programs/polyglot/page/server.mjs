import { readFile } from "node:fs/promises";

const page = await readFile(new URL("index.html", import.meta.url));

export default {
  fetch() {
    return new Response(page, { headers: { "content-type": "text/html; charset=utf-8" } });
  },
};
