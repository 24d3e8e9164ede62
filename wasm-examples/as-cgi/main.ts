// A WASI 0.1 program in AssemblyScript by the CGI convention (RFC 3875). AssemblyScript knows nothing of WASI by itself, so the
// five functions that it takes are declared here.

// @ts-ignore: decorator
@external("wasi_snapshot_preview1", "fd_read")
declare function fd_read(fd: i32, buffers: usize, count: i32, length: usize): i32;
// @ts-ignore: decorator
@external("wasi_snapshot_preview1", "fd_write")
declare function fd_write(fd: i32, buffers: usize, count: i32, length: usize): i32;
// @ts-ignore: decorator
@external("wasi_snapshot_preview1", "environ_sizes_get")
declare function environ_sizes_get(count: usize, length: usize): i32;
// @ts-ignore: decorator
@external("wasi_snapshot_preview1", "environ_get")
declare function environ_get(pointers: usize, text: usize): i32;
// @ts-ignore: decorator
@external("wasi_snapshot_preview1", "proc_exit")
declare function proc_exit(code: i32): void;

const STDIN = 0;
const STDOUT = 1;
const STDERR = 2;

/** What a buffer of `iovec` and a length of 4 bytes are put in. */
const vector = memory.data(12);

function writeAll(fd: i32, start: usize, length: i32): void {
  while (length > 0) {
    store<u32>(vector, u32(start));
    store<u32>(vector, u32(length), 4);
    if (fd_write(fd, vector, 1, vector + 8) != 0) proc_exit(1); // nobody reads any more
    const written = load<u32>(vector, 8);
    start += written;
    length -= written;
  }
}

function print(text: string, fd: i32 = STDOUT): void {
  const bytes = String.UTF8.encode(text);
  writeAll(fd, changetype<usize>(bytes), bytes.byteLength);
}

/** All of stdin to stdout, as it comes; how many bytes that was. */
function copy(toStdout: bool): i32 {
  const size = 65536;
  const buffer = changetype<usize>(new ArrayBuffer(size));
  let total = 0;
  while (true) {
    store<u32>(vector, u32(buffer));
    store<u32>(vector, u32(size), 4);
    if (fd_read(STDIN, vector, 1, vector + 8) != 0) proc_exit(1);
    const length = load<u32>(vector, 8);
    if (length == 0) return total;
    total += length;
    if (toStdout) writeAll(STDOUT, buffer, length);
  }
}

function environment(): Map<string, string> {
  const all = new Map<string, string>();
  environ_sizes_get(vector, vector + 4);
  const count = load<u32>(vector);
  const pointers = changetype<usize>(new ArrayBuffer(4 * max(count, 1)));
  const text = changetype<usize>(new ArrayBuffer(max(load<u32>(vector, 4), 1)));
  environ_get(pointers, text);
  for (let at: u32 = 0; at < count; at++) {
    const start: usize = load<u32>(pointers + 4 * at);
    let end = start;
    while (load<u8>(end) != 0) end++;
    const variable = String.UTF8.decodeUnsafe(start, end - start);
    const split = variable.indexOf("=");
    all.set(variable.substring(0, split), variable.substring(split + 1));
  }
  return all;
}

function reply(status: string, body: string): void {
  print("Status: " + status + "\nContent-Type: text/plain; charset=utf-8\n\n" + body);
}

export function _start(): void {
  const variables = environment();
  if (variables.get("EVENT_TYPE") == "message") {
    print('{"language": "assemblyscript", "bytes": ' + copy(false).toString() + "}");
    return;
  }
  const path = variables.get("PATH_INFO");
  if (path == "/") {
    reply("200 OK", "Hello from AssemblyScript by way of CGI\n");
  } else if (path == "/echo") {
    print("Content-Type: application/octet-stream\n\n");
    copy(true);
  } else if (path == "/fail") {
    print("as-cgi: asked to fail by the request for /fail\n", STDERR);
    proc_exit(3);
  } else {
    reply("404 Not Found", "nothing at " + path + "\n");
  }
}
