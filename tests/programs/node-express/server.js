// A list of tasks, with Express. Exported, and listening only where it is started by itself.

const express = require("express");

const app = express();
const tasks = new Map();
let last = 0;

app.use(express.json());

app.get("/", (request, response) => response.send("Hello from Express\n"));

app.get("/tasks", (request, response) => response.json([...tasks.values()]));

app.post("/tasks", (request, response) => {
  const task = { id: ++last, text: request.body.text };
  tasks.set(task.id, task);
  response.status(201).location(`/tasks/${task.id}`).json(task);
});

app.get("/tasks/:id", (request, response) => {
  const task = tasks.get(Number(request.params.id));
  if (task) response.json(task);
  else response.status(404).json({ error: "no such task" });
});

app.post("/upper", express.raw({ type: "*/*", limit: "20mb" }), (request, response) => {
  response.type("text/plain").send(request.body.toString().toUpperCase());
});

app.get("/about", (request, response) => {
  response.json({ protocol: request.protocol, ip: request.ip, host: request.hostname, forwarded: request.get("x-forwarded-for") });
});

app.get("/cookies", (request, response) => response.cookie("a", "1").cookie("b", "2").redirect("/tasks"));

// Express hears of this one.
app.get("/throw", () => {
  throw new Error("a route threw");
});

// Nobody hears of these two.
app.get("/throw-later", () => {
  setTimeout(() => {
    throw new Error("thrown where nobody listens");
  }, 1);
});

app.get("/reject-later", () => {
  setTimeout(() => Promise.reject(new Error("rejected where nobody listens")), 1);
});

app.get("/print", (request, response) => {
  console.log("a line of a request");
  response.send("printed\n");
});

module.exports = app;

if (require.main === module && process.env.ALONE) app.listen(process.env.PORT);
