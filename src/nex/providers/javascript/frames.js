// Frames over the worker's sockets, and the way of host calls. See nex.providers.frames:
//
// u32 bytes after this field | u8 kind | u32 id | u32 bytes of head | head | body, all little endian.
//
// fd 0 and 1 are one socket: LOAD and CALLs come, and go answered, in turn. Who makes a blocking host call reads on
// there until its answer comes, and keeps CALLs that come first. Answers to asynchronous ones come on fd 2, so that
// neither kind ever waits for the other.

export const READY = 1, RESULT = 2, FAILED = 3, LOG = 4, TOO_LARGE = 5, HOST_CALL = 6;
export const LOAD = 16, CALL = 17, WARM = 18, HOST_ANSWER = 19;
export const EMPTY = new Uint8Array(0);

const HEADER = 13;
const ASIDE = 0x80000000; // from here on, ids ask for the answer on fd 2
const ASIDE_FD = 2;
const MOST = 32; // asynchronous host calls at once; others wait here

const { stdin, stdout } = Deno;
const { core } = Deno[Deno.internal];

/** Cuts a stream of bytes into frames. */
class Inlet {
  #bytes = new Uint8Array(1 << 17);
  #start = 0;
  #end = 0;

  #u32(at) {
    const b = this.#bytes;
    return (b[at] | b[at + 1] << 8 | b[at + 2] << 16 | b[at + 3] << 24) >>> 0;
  }

  /** The next frame, or null if it is not whole yet. The body is a copy, the head a view until `space` is called. */
  next() {
    const start = this.#start, here = this.#end - start;
    if (here < HEADER) return null;
    const size = 4 + this.#u32(start);
    if (here < size) return null;
    const bytes = this.#bytes, body = start + HEADER + this.#u32(start + 9), end = start + size;
    if (end === this.#end) this.#start = this.#end = 0;
    else this.#start = end;
    return { kind: bytes[start + 4], id: this.#u32(start + 5), head: bytes.subarray(start + HEADER, body), body: bytes.slice(body, end) };
  }

  /** Where the bytes that come next belong; tell `filled` how many came. */
  space() {
    const start = this.#start, here = this.#end - start;
    const size = here < HEADER ? HEADER : 4 + this.#u32(start);
    if (this.#bytes.length < size) {
      const larger = new Uint8Array(Math.max(size, this.#bytes.length * 2));
      larger.set(this.#bytes.subarray(start, this.#end));
      this.#bytes = larger;
    } else if (this.#bytes.length - start < size) {
      this.#bytes.copyWithin(0, start, this.#end);
    } else {
      return this.#end === 0 ? this.#bytes : this.#bytes.subarray(this.#end);
    }
    this.#start = 0; this.#end = here;
    return this.#bytes.subarray(here);
  }

  filled(n) { this.#end += n; }
}

const inlet = new Inlet();
const kept = []; // frames that came while an answer was awaited
let output = new Uint8Array(1 << 17);

function read() {
  for (;;) {
    const frame = inlet.next();
    if (frame !== null) return frame;
    const n = stdin.readSync(inlet.space());
    if (!n) return null;
    inlet.filled(n);
  }
}

/** The next LOAD, CALL or WARM, waiting for it; null when the other side has closed. */
export function receive() {
  return kept.length ? kept.shift() : read();
}

export function send(kind, id, head, body) {
  const size = HEADER + head.length + body.length;
  if (output.length < size) output = new Uint8Array(size * 2);
  const after = size - 4, o = output;
  o[0] = after; o[1] = after >> 8; o[2] = after >> 16; o[3] = after >> 24;
  o[4] = kind;
  o[5] = id; o[6] = id >> 8; o[7] = id >> 16; o[8] = id >> 24;
  o[9] = head.length; o[10] = head.length >> 8; o[11] = head.length >> 16; o[12] = head.length >> 24;
  if (head.length) o.set(head, HEADER);
  o.set(body, HEADER + head.length);
  let rest = o.subarray(0, size);
  for (;;) {
    const written = stdout.writeSync(rest);
    if (written === rest.length) return;
    rest = rest.subarray(written);
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Host calls. An answer is a frame, or null if there can be none any more.

let lastId = 0;
let closed = false;
const newId = () => lastId = (lastId + 1) % ASIDE;

/** Make a host call and block until its answer is there. */
export function ask(head, body) {
  if (closed) return null;
  const id = newId();
  send(HOST_CALL, id, head, body);
  for (;;) {
    const frame = read();
    if (frame === null) return null;
    if (frame.kind !== HOST_ANSWER) kept.push({ ...frame, head: frame.head.slice() });
    else if (frame.id === id) return frame;
  }
}

const aside = new Inlet();
const waiting = new Map(); // by id
const queue = []; // what could not begin yet
let isListening = false;

/** Make a host call; a promise of its answer. */
export function askAside(head, body) {
  return new Promise((resolve) => {
    if (closed) resolve(null);
    else if (waiting.size < MOST) begin(head, body, resolve);
    else queue.push([head, body.slice(), resolve]);
  });
}

function begin(head, body, resolve) {
  const id = ASIDE + newId();
  waiting.set(id, resolve);
  send(HOST_CALL, id, head, body);
  if (!isListening) listen();
}

async function listen() {
  isListening = true;
  while (waiting.size) {
    const frame = aside.next();
    if (frame === null) {
      const n = await core.read(ASIDE_FD, aside.space());
      if (!n) break; // the other side is gone, and so are we, soon
      aside.filled(n);
      continue;
    }
    const resolve = waiting.get(frame.id);
    if (resolve === undefined) continue; // nobody waits any more
    waiting.delete(frame.id);
    resolve({ ...frame, head: frame.head.slice() });
    if (queue.length) begin(...queue.shift());
  }
  isListening = false;
}

/** Whether answers are awaited. */
export const isAsking = () => waiting.size > 0;

/** Wait for no answers any more: let whoever does know, and have what nobody catches logged. */
export async function giveUp() {
  closed = true;
  for (const resolve of waiting.values()) resolve(null);
  for (const [, , resolve] of queue) resolve(null);
  waiting.clear();
  queue.length = 0;
  for (let turn = 0; turn < 2; turn++) await new Promise((resolve) => setTimeout(resolve)); // the first may log nothing yet
  closed = false;
}
