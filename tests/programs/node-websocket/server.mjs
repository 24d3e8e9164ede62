// A server that takes WebSockets with nothing but what Node has: it says back each short text that it is told, behind the
// path. Exported, or listening by itself if LISTENS says so.

import { createHash } from "node:crypto";
import { createServer } from "node:http";

const server = createServer((request, response) => response.end("a page"));

server.on("upgrade", (request, socket, head) => {
  socket.on("error", () => socket.destroy());
  if (!request.url.startsWith("/chat")) {
    socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    return;
  }
  const key = request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
  const accept = createHash("sha1").update(key).digest("base64");
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
  );
  let rest = head;
  socket.on("data", (data) => {
    rest = Buffer.concat([rest, data]);
    // Frames of clients are masked; those here are shorter than 126 bytes (RFC 6455, 5.2).
    while (rest.length >= 6 && rest.length >= 6 + (rest[1] & 127)) {
      const [code, length] = [rest[0] & 15, rest[1] & 127];
      const payload = rest.subarray(6, 6 + length).map((byte, at) => byte ^ rest[2 + (at % 4)]);
      rest = rest.subarray(6 + length);
      if (code === 1) {
        if (String(payload) === "fail") throw new Error("in the middle of a conversation");
        const text = Buffer.from(`${request.url}: ${payload}`);
        socket.write(Buffer.concat([Buffer.from([0x81, text.length]), text]));
      } else if (code === 8) {
        socket.end(Buffer.concat([Buffer.from([0x88, payload.length]), payload]));
      }
    }
  });
});

if (process.env.LISTENS) server.listen(process.env.PORT, process.env.HOST);

export default process.env.LISTENS ? undefined : server;
