const page = `<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <title>Polyglot</title>
    <link rel="stylesheet" href="/static/style.css">
  </head>
  <body>
    <h1>Polyglot</h1>
    <p>This page comes from Node, its style from a file, and this from Python: <code id="api"></code></p>
    <script type="module">
      document.querySelector("#api").textContent = await (await fetch("/api/")).text();
    </script>
  </body>
</html>
`;

export default {
  fetch() {
    return new Response(page, { headers: { "content-type": "text/html; charset=utf-8" } });
  },
};
