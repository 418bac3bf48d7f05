// The host services as functions find them: `hostServices`, which blocks as in Nex 0.2, and what `import … from "nex"`
// gives, which is asynchronous.
//
// Each operation is written once, as a generator that yields host calls (nex.protocol.hostcalls) and gets their answers;
// `blocking` and `later` run it.

import { ask, askAside, EMPTY } from './frames.js';

const PIECE_BYTES = 256 * 1024;
const { stringify, parse } = JSON;
const { freeze } = Object;
const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** A host call that failed: `code` is one of nex.protocol.hostcalls.ERRORS, `status` its number as in HTTP. */
export class HostError extends Error {
  constructor(code, message, status) {
    super(message);
    this.code = code;
    this.status = status;
  }
  toJSON() { return `${this} (${this.status})`; }
}
Object.defineProperty(HostError.prototype, 'name', { value: 'HostError', configurable: true, writable: true });

// ---------------------------------------------------------------------------------------------------------------
// Host calls.

function* call(method, args, body = EMPTY) {
  const head = encoder.encode(stringify({ method, ...args }));
  for (;;) {
    const frame = yield [head, body];
    if (frame === null) throw new HostError('failed', `${method} was not awaited: the function has returned`, 500);
    const { code, error, message, stream, value } = parse(decoder.decode(frame.head));
    if (!error) return { value, body: frame.body, stream };
    if (!stream) throw new HostError(error, message, code);
    // else it is a stream on which nothing has come, or for which there was no room: ask again
  }
}

const next = (stream) => call('stream.read', { stream });
const write = (stream, piece) => call('stream.write', { stream }, piece);
const end = (stream, piece) => call('stream.end', { stream }, piece);
const close = (stream) => call('stream.close', { stream });

function blocking(steps) {
  let step = steps.next();
  while (!step.done) step = steps.next(ask(...step.value));
  return step.value;
}

async function later(steps) {
  let step = steps.next();
  while (!step.done) step = steps.next(await askAside(...step.value));
  return step.value;
}

/** An answer with all of its body. */
function* whole(steps) {
  const answer = yield* steps;
  if (!answer.stream) return answer;
  const pieces = [answer.body];
  for (let { stream } = answer; stream;) {
    const piece = yield* next(stream);
    pieces.push(piece.body);
    stream = piece.stream;
  }
  return { value: answer.value, body: joined(pieces) };
}

function joined(pieces) {
  const all = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}

/** Make a call with a body of any size. */
function* upload(method, args, body) {
  if (body.length <= PIECE_BYTES) return yield* call(method, args, body);
  const { stream } = yield* call(method, { ...args, streams: true }, body.subarray(0, PIECE_BYTES));
  let at = PIECE_BYTES;
  for (; body.length - at > PIECE_BYTES; at += PIECE_BYTES) yield* write(stream, body.subarray(at, at + PIECE_BYTES));
  return yield* end(stream, body.subarray(at));
}

/** Make a call with a body of unknown size, an asynchronous iterable of bytes; asynchronous. */
async function uploadFrom(method, args, source) {
  let stream = 0, pieces = [], size = 0;
  try {
    for await (const chunk of source) {
      for (let bytes = toBytes(chunk); bytes.length;) {
        if (size === PIECE_BYTES) {
          const piece = joined(pieces);
          if (stream) await later(write(stream, piece));
          else ({ stream } = await later(call(method, { ...args, streams: true }, piece)));
          pieces = []; size = 0;
        }
        const part = bytes.subarray(0, PIECE_BYTES - size);
        pieces.push(part); size += part.length;
        bytes = bytes.subarray(part.length);
      }
    }
  } catch (error) {
    if (stream) await later(close(stream));
    throw error;
  }
  return later(stream ? end(stream, joined(pieces)) : call(method, args, joined(pieces)));
}

/** The rest of an answer as a stream. */
function readable(answer) {
  let piece = answer;
  return new ReadableStream({
    async pull(controller) {
      while (!piece.body.length && piece.stream) piece = await later(next(piece.stream));
      if (piece.body.length) controller.enqueue(piece.body);
      if (!piece.stream) controller.close();
      piece = { ...piece, body: EMPTY };
    },
    cancel: () => piece.stream ? later(close(piece.stream)) : undefined,
  }, { highWaterMark: 0 });
}

// ---------------------------------------------------------------------------------------------------------------
// Arguments and results.

function need(args, n, what) {
  if (args.length < n) throw new TypeError(what);
}

function toBytes(value) {
  if (value instanceof Uint8Array) return value;
  if (typeof value === 'string') return encoder.encode(value);
  if (value instanceof ArrayBuffer) return new Uint8Array(value);
  if (ArrayBuffer.isView(value)) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  throw new TypeError(`bytes or a string are wanted, not ${value === null ? 'null' : Array.isArray(value) ? 'an array' : `a value of type ${typeof value}`}`);
}

const strings = (headers = {}) => Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, `${value}`]));
const milliseconds = (value = 0) => Math.ceil(value);

/** Bytes, and ways to read them. */
class Entry {
  constructor(key, value, { revision, operation = 'put', created }) {
    this.key = key;
    this.value = value;
    this.revision = revision;
    this.operation = operation;
    if (created !== undefined) this.created = new Date(created);
  }
  string() { return decoder.decode(this.value); }
  json() { return parse(this.string()); }
}

class Message {
  constructor(data, headers = {}) {
    this.data = data;
    this.headers = headers;
  }
  string() { return decoder.decode(this.data); }
  json() { return parse(this.string()); }
}

/** The value of `steps`, or null for what there is not. */
function* orNull(steps) {
  try {
    return yield* steps;
  } catch (error) {
    if (error.code === 'not_found') return null;
    throw error;
  }
}

/** What `split` makes of each item of a list and its part of the body. */
function parts({ value, body }, split) {
  let at = 0;
  return value.map((item) => split(item, body.slice(at, at += item.size)));
}

/** All the pages of a list. */
function* pages(method, args, name) {
  const all = [];
  for (let after = '', page; page === undefined || after; after = page.after) {
    page = (yield* call(method, { ...args, after })).value;
    all.push(...page[name]);
  }
  return all;
}

// ---------------------------------------------------------------------------------------------------------------
// Operations.

const kvSteps = (bucket) => ({
  *get(key, { revision = 0 } = {}) {
    const { value, body } = yield* whole(call('kv.get', { bucket, key, revision }));
    return new Entry(key, body, value);
  },
  *set(method, key, value, { ttl, ...revision } = {}) {
    return (yield* upload(method, { bucket, key, ttl_ms: milliseconds(ttl), ...revision }, toBytes(value))).value.revision;
  },
  *delete(key, { revision = 0, purge = false } = {}) {
    yield* call('kv.delete', { bucket, key, revision, purge });
  },
  keys: (filter = '>') => pages('kv.keys', { bucket, filter, limit: 10_000 }, 'keys'),
  *history(key) {
    return parts(yield* whole(call('kv.history', { bucket, key })), (item, value) => new Entry(key, value, item));
  },
  watch: (filter = '>', { updates = false } = {}) => call('kv.watch', { bucket, filter, updates }),
  /** What comes next on a watch; its value may have come in pieces. */
  *change({ stream }) {
    const first = yield* next(stream);
    if (!first.value) return first;
    const pieces = [first.body];
    let last = first;
    for (let size = first.body.length; size < first.value.size && last.stream; size += last.body.length) {
      last = yield* next(stream);
      pieces.push(last.body);
    }
    return { entry: new Entry(first.value.key, joined(pieces), first.value), stream: last.stream };
  },
});

const objectSteps = (bucket) => ({
  get: (name) => call('objectstore.get', { bucket, name }),
  *info(name) { return (yield* call('objectstore.info', { bucket, name })).value; },
  *put(name, value, { description = '', metadata } = {}) {
    return (yield* upload('objectstore.put', { bucket, name, description, metadata: strings(metadata) }, toBytes(value))).value;
  },
  *delete(name) { yield* call('objectstore.delete', { bucket, name }); },
  list: () => pages('objectstore.list', { bucket }, 'objects'),
});

function* publish(subject, payload, { headers } = {}) {
  yield* upload('messaging.publish', { subject, headers: strings(headers) }, toBytes(payload));
}

function* request(subject, payload, { headers, timeout } = {}) {
  const args = { subject, headers: strings(headers), timeout_ms: milliseconds(timeout) };
  const { value, body } = yield* whole(upload('messaging.request', args, toBytes(payload)));
  return new Message(body, value?.headers);
}

function* requestMany(subject, payload, { headers, timeout, stall, most = 0 } = {}) {
  const args = { subject, headers: strings(headers), timeout_ms: milliseconds(timeout), stall_ms: milliseconds(stall), most };
  const answer = yield* whole(upload('messaging.requestMany', args, toBytes(payload)));
  return parts(answer, (item, data) => new Message(data, item.headers));
}

function* exchange(verb, url, body, { headers = {}, timeout, redirect = 'follow' } = {}) {
  const args = { verb, url: `${url}`, headers: [...new Headers(headers)], timeout_ms: milliseconds(timeout), redirect: redirect === 'follow' };
  return toResult(yield* whole(upload('http.fetch', args, body === undefined ? EMPTY : toBytes(body))));
}

/** The result of 0.2; the text of the body is there if it is not empty, its bytes always. */
function toResult({ value, body }) {
  const headers = {};
  for (const [name, text] of value.headers) {
    const canonical = name.toLowerCase().replaceAll(/(^|-)[a-z]/g, (match) => match.toUpperCase());
    headers[canonical] = Object.hasOwn(headers, canonical) ? `${headers[canonical]}, ${text}` : text;
  }
  const result = { status: value.status, headers, response: body.length ? decoder.decode(body) : undefined };
  return Object.defineProperty(result, 'bytes', { value: body });
}

// ---------------------------------------------------------------------------------------------------------------
// `hostServices`: names, arguments and results of Nex 0.2, and what it did not have.

function blockingKv(bucket) {
  const steps = kvSteps(bucket);
  const setter = (method) => function (key, value, options) {
    need(arguments, 2, 'key and value are required');
    return blocking(steps.set(method, key, value, options));
  };
  const set = setter('kv.set');
  return {
    get(key, options) {
      need(arguments, 1, 'key is required');
      return blocking(steps.get(key, options)).value;
    },
    set(...args) { set(...args); },
    create: setter('kv.create'),
    update(key, value, revision, options) {
      need(arguments, 3, 'key, value and revision are required');
      return blocking(steps.set('kv.update', key, value, { ...options, revision }));
    },
    delete(key, options) {
      need(arguments, 1, 'key is required');
      blocking(steps.delete(key, options));
    },
    keys: (filter) => blocking(steps.keys(filter)),
    entry(key, options) {
      need(arguments, 1, 'key is required');
      return blocking(orNull(steps.get(key, options)));
    },
    history(key) {
      need(arguments, 1, 'key is required');
      return blocking(steps.history(key));
    },
    *watch(filter, options) {
      let change = blocking(steps.watch(filter, options));
      try {
        while (change.stream) {
          change = blocking(steps.change(change));
          if (change.entry) yield change.entry;
        }
      } finally {
        if (change.stream) blocking(close(change.stream));
      }
    },
  };
}

function blockingObjects(bucket) {
  const steps = objectSteps(bucket);
  const named = (operation) => function (name) {
    need(arguments, 1, 'name is required');
    return operation(name);
  };
  return {
    get: named((name) => blocking(whole(steps.get(name))).body),
    put(name, value, options) {
      need(arguments, 2, 'name and value are required');
      return blocking(steps.put(name, value, options));
    },
    delete: named((name) => blocking(steps.delete(name))),
    list: () => blocking(steps.list()),
    info: named((name) => blocking(orNull(steps.info(name)))),
  };
}

function blockingMessaging() {
  const sender = (send) => function (subject, payload, options) {
    need(arguments, 2, 'subject and payload are required');
    return send(subject, payload, options);
  };
  return {
    publish: sender((...args) => blocking(publish(...args))),
    request: sender((...args) => blocking(request(...args)).data),
    requestMany: sender((...args) => blocking(requestMany(...args)).map((reply) => reply.data)),
  };
}

function blockingHttp() {
  const bare = (verb) => function (url, payload, options) {
    need(arguments, 1, 'url is required');
    return blocking(exchange(verb, url, undefined, options ?? (payload instanceof Uint8Array ? {} : payload)));
  };
  const full = (verb) => function (url, payload, options) {
    need(arguments, 2, 'url and payload are required');
    return blocking(exchange(verb, url, payload, options));
  };
  return {
    get: bare('GET'), delete: bare('DELETE'), head: bare('HEAD'),
    post: full('POST'), put: full('PUT'), patch: full('PATCH'),
  };
}

const withBuckets = (make) => freeze({
  ...make(''),
  bucket(name) {
    need(arguments, 1, 'name is required');
    return freeze(make(`${name}`));
  },
});

export const hostServices = freeze({
  http: freeze(blockingHttp()),
  kv: withBuckets(blockingKv),
  messaging: freeze(blockingMessaging()),
  objectStore: withBuckets(blockingObjects),
});

// ---------------------------------------------------------------------------------------------------------------
// What `import … from "nex"` gives: the same, asynchronous.

function asyncKv(bucket) {
  const steps = kvSteps(bucket);
  const set = async (key, value, options) => later(steps.set('kv.set', key, value, options));
  return {
    get: async (key, options) => later(orNull(steps.get(key, options))),
    set,
    put: set,
    create: async (key, value, options) => later(steps.set('kv.create', key, value, options)),
    update: async (key, value, revision, options) => later(steps.set('kv.update', key, value, { ...options, revision })),
    delete: async (key, options) => later(steps.delete(key, options)),
    purge: async (key) => later(steps.delete(key, { purge: true })),
    keys: async (filter) => later(steps.keys(filter)),
    history: async (key) => later(steps.history(key)),
    async *watch(filter, options) {
      let change = await later(steps.watch(filter, options));
      try {
        while (change.stream) {
          change = await later(steps.change(change));
          if (change.entry) yield change.entry;
        }
      } finally {
        if (change.stream) await later(close(change.stream));
      }
    },
  };
}

function asyncObjects(bucket) {
  const steps = objectSteps(bucket);
  return {
    get: async (name) => (await later(orNull(whole(steps.get(name)))))?.body ?? null,
    async open(name) {
      const answer = await later(orNull(steps.get(name)));
      return answer === null ? null : readable(answer);
    },
    async put(name, value, { description = '', metadata } = {}) {
      const source = value instanceof Blob ? value.stream() : value;
      if (!(source instanceof ReadableStream)) return later(steps.put(name, value, { description, metadata }));
      return (await uploadFrom('objectstore.put', { bucket, name, description, metadata: strings(metadata) }, source)).value;
    },
    info: async (name) => later(orNull(steps.info(name))),
    delete: async (name) => later(steps.delete(name)),
    list: async () => later(steps.list()),
  };
}

const NULL_BODY = new Set([204, 205, 304]);

export async function fetch(input, init) {
  const request = new Request(input, init);
  const { signal } = request;
  signal.throwIfAborted();
  const args = {
    verb: request.method, url: request.url, headers: [...request.headers],
    timeout_ms: milliseconds(init?.timeout), redirect: request.redirect === 'follow',
  };
  const answering = request.body ? uploadFrom('http.fetch', args, request.body) : later(call('http.fetch', args));
  const answer = await unlessAborted(answering, signal);
  const { status, headers, url } = answer.value;
  if (request.redirect === 'error' && status >= 300 && status < 400) throw new TypeError(`${request.url} redirects`);
  const body = NULL_BODY.has(status) || request.method === 'HEAD' ? null : answer.stream ? readable(answer) : answer.body;
  const response = new Response(body, { status, headers });
  return Object.defineProperties(response, { url: { value: url }, redirected: { value: url !== request.url } });
}

async function unlessAborted(answering, signal) {
  let abort;
  const aborted = new Promise((_, reject) => signal.addEventListener('abort', abort = () => reject(signal.reason)));
  try {
    return await Promise.race([answering, aborted]);
  } catch (error) {
    if (signal.aborted) answering.then(({ stream }) => stream && later(close(stream))).catch(() => {});
    throw error;
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

export const services = freeze({
  kv: withBuckets(asyncKv),
  objectStore: withBuckets(asyncObjects),
  messaging: freeze({
    publish: async (subject, payload = EMPTY, options) => later(publish(subject, payload, options)),
    request: async (subject, payload = EMPTY, options) => later(request(subject, payload, options)),
    requestMany: async (subject, payload = EMPTY, options) => later(requestMany(subject, payload, options)),
  }),
  http: freeze({ fetch }),
  HostError,
});
