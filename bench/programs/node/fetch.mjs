export default {
  fetch(request) {
    if (request.url.endsWith("/echo")) return new Response(request.body);
    return new Response("Hello, World!", { headers: { "content-type": "text/plain" } });
  },
};
