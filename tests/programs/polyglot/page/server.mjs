// The shop's pages, rendered here of what the API knows: the API is another component, in another language.

import { randomUUID } from "node:crypto";
import http from "node:http";

/** The API's answer, over the socket that leads to the other components. */
function api(path, id) {
  const options = { socketPath: process.env.POLYINIT_SOCKET, host: "api.internal", path, headers: { "x-request-id": id } };
  return new Promise((resolve, reject) => {
    const request = http.get(options, (response) => {
      const pieces = [];
      response.on("data", (piece) => pieces.push(piece));
      response.on("error", reject);
      response.on("end", () => {
        const text = Buffer.concat(pieces).toString();
        if (response.statusCode === 200) resolve(JSON.parse(text));
        else if (response.statusCode === 404) resolve(null);
        else reject(new Error(`the API answers ${response.statusCode}: ${text}`));
      });
    });
    request.on("error", reject);
  });
}

const escaped = (text) => text.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);
const euros = (cents) => `${(cents / 100).toFixed(2)} €`;

const page = (title, body) => `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>${escaped(title)}</title><link rel="stylesheet" href="/static/style.css"></head>
<body><h1><a href="/">Polyglot</a></h1>${body}</body>
</html>
`;

const card = ({ id, name, price }) => `
<li><a href="/product/${id}"><img src="/thumbnails/${id}.png?width=96" width="96" height="96" alt="">
<b>${escaped(name)}</b> ${euros(price)}</a></li>`;

const search = `<form action="/search"><input name="q" placeholder="warm" aria-label="search"> <button>search</button></form>`;

const html = (text, status = 200) => new Response(text, { status, headers: { "content-type": "text/html; charset=utf-8" } });

export default {
  async fetch(request) {
    const id = request.headers.get("x-request-id") ?? randomUUID();
    const { pathname } = new URL(request.url);
    const [, wanted] = pathname.match(/^\/product\/([a-z]+)$/) ?? [];
    if (wanted) {
      const product = await api(`/api/products/${wanted}`, id);
      if (!product) return html(page("Nothing here", "<p>There is no such thing.</p>"), 404);
      const picture = `<img src="/static/pictures/${product.id}.png" width="256" height="256" alt="">`;
      return html(page(product.name, `<h2>${escaped(product.name)}</h2>${picture}<p>${escaped(product.text)}</p><p>${euros(product.price)}</p>`));
    }
    const products = await api("/api/products", id);
    return html(page("Polyglot", `${search}<ul>${products.map(card).join("")}</ul>`));
  },
};
