// A web application with nothing to install: the Fetch API's Request and Response, which Node has itself.

export default {
  async fetch(request) {
    const { pathname } = new URL(request.url);
    return Response.json({ hello: pathname.slice(1) || "world" });
  },
};
