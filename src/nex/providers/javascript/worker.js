// The inside of a JavaScript worker: one function, called once at a time.
//
// LOAD comes first (head: JSON settings, body: the source); then CALLs (head: subject, and after a NUL the headers as
// JSON; body: payload). We answer READY or FAILED, then RESULT, FAILED or TOO_LARGE; LOG and HOST_CALL come between.
//
// User code shares this realm. It cannot reach the outside (the process has no permissions, and what Deno offers is
// deleted), but it can break what it shares with us, so the other side trusts no frame and kills this process at will.

import { CALL, EMPTY, FAILED, giveUp, isAsking, LOAD, LOG, READY, receive, RESULT, send, TOO_LARGE, WARM } from './frames.js';
import { fetch, hostServices, services } from './services.js';

const LOG_CHARS = 65536;

const { inspect } = Deno;
const { Console, core } = Deno[Deno.internal];
const { stringify, parse } = JSON;
const encoder = new TextEncoder();
const decoder = new TextDecoder();
const collect = globalThis.gc;
const COLLECT_BYTES = 8 << 20;

const shorten = (text, limit) => text.length > limit ? text.slice(0, limit) + '…' : text;
const log = (level, text) => send(LOG, 0, encoder.encode(level), encoder.encode(shorten(text, LOG_CHARS)));

const US = new URL('.', import.meta.url).href;
const withoutAdvice = (text) => text.replaceAll(/, run again with the --allow-[a-z-]+ flag/g, ', which functions do not have');
const withoutUs = (stack) => stack.split('\n').filter((line) => !line.includes(US)).join('\n');

/** What the caller may see of an error, and what the log shows. `hide` puts our name for a source into stacks. */
function describe(error) {
  try {
    const text = foreign(error);
    if (text !== null) return [text, text];
    if (error instanceof Error) return [withoutAdvice(`${error.name}: ${error.message}`), hide(withoutUs(String(error.stack || error)))];
    return [shorten(typeof error === 'string' ? error : inspect(error), 1024), ''];
  } catch {
    return ['an error that cannot be shown', ''];
  }
}

function fail(id, text, detail) {
  send(FAILED, id, encoder.encode(shorten(hide(text), 4096)), encoder.encode(shorten(detail, LOG_CHARS)));
}

/** A parser's message as one line with the place; other errors as they are. */
function describeLoad(error) {
  const [text, detail] = describe(error);
  if (!isParseError(error)) return [text, error instanceof Unfit ? '' : detail];
  const [, what, line, column] = /^(?:TypeError: )?SyntaxError: (.*)[^]*?:(\d+):(\d+)(?:\n|$)/.exec(hide(`${text}\n`)) ?? [];
  return [what === undefined ? text : `SyntaxError: ${what} (line ${line}, column ${column})`, hide(text)];
}

/** A source that loads but is no function. */
class Unfit extends Error {
  name = 'Error';
}

/** What Deno says of an import that is not in its map, on the web, of JSR or npm, or of Node and in need of the host. */
const FOREIGN = new RegExp([
  /^(?:Import|A remote specifier was requested:|Requires import access to|Module not found) "([^"]+)"/,
  /^Unsupported scheme "\w+" for module "([^"]+)"/,
  /^JSR package manifest|^npm specifiers/,
  /^ReferenceError: [^]* at (?:[^\n]*\()?(?:ext:deno_)?node[:/]/,
].map((one) => one.source).join('|'));

/** What to say of an import that functions cannot have; null if the error is another. */
function foreign(error) {
  const found = error instanceof Error && FOREIGN.exec(error.message);
  if (!found) return null;
  const name = found.slice(1).find((one) => one)
    ?? [...error.message.matchAll(/\b(node:[\w/]+):\d+:\d+/g)].at(-1)?.[1] // the one that imported the others
    ?? /["'`]((?:npm|jsr):[^"'`]+)/.exec(code)?.[1] ?? 'of that name';
  const at = code.search(new RegExp(`["'\`]${name.replaceAll(/\W/g, '\\$&').replace(/^node\\:/, '(node:)?')}`));
  const line = at < 0 ? '' : ` (line ${code.slice(0, at).split('\n').length})`;
  const advice = name.startsWith('node:') ? 'a function has no files, processes or sockets, but what "nex" gives it'
    : 'a function is one file and imports "nex" alone; bundle the rest';
  return `there is no module ${name} here${line}: ${advice}`;
}

let hide = (text) => text;
let code = '';
let isScript = false;
let resultBytes = 0;

// ---------------------------------------------------------------------------------------------------------------
// What user code finds.

/** Return one of these to answer with headers: `new Reply(payload, {Name: "value"})`. */
class Reply {
  constructor(payload, headers = {}) { this.payload = payload; this.headers = headers; }
}

const fixed = (name, value) => Object.defineProperty(globalThis, name, { value, enumerable: typeof name === 'string' });

/** What is the same for all functions. */
function installServices() {
  fixed('Reply', Reply);
  fixed('hostServices', hostServices);
  fixed(Symbol.for('nex'), Object.freeze({ ...services, Reply })); // where the module "nex" finds it
  globalThis.fetch = fetch;
}

function install(environment) {
  const LEVELS = ['DEBUG', 'INFO', 'WARN', 'ERROR'];
  globalThis.console = new Console((text, level) => log(LEVELS[level] ?? 'INFO', text.endsWith('\n') ? text.slice(0, -1) : text));
  const env = Object.freeze(Object.assign(Object.create(null), environment));
  fixed('env', env);
  globalThis.addEventListener('unhandledrejection', (event) => {
    event.preventDefault();
    const [text, detail] = describe(event.reason);
    log('ERROR', `unhandled rejection: ${detail || text}`);
  });
  globalThis.addEventListener('error', (event) => {
    event.preventDefault();
    const [text, detail] = describe(event.error);
    log('ERROR', `uncaught: ${detail || text}`);
  });
  for (const name of ['Deno', 'Worker', 'process', 'global', 'close', 'alert', 'confirm', 'prompt', 'localStorage',
    'sessionStorage', 'caches', 'name', 'onload', 'onunload', 'onbeforeunload']) delete globalThis[name];
  globalThis.gc = undefined; // it cannot be deleted
  return env;
}

// ---------------------------------------------------------------------------------------------------------------
// From a source to a function.

/** Whether `source` is a classic script; compiles it and runs nothing of it. */
function compiles(source) {
  try {
    (0, eval)(`throw null;${source}`); // an eval, so that what it declares at the top does not get in the script's way
  } catch (error) {
    return error === null;
  }
  return true;
}

const { createObjectURL, revokeObjectURL } = URL;

async function importAs(type, source, name) {
  const url = createObjectURL(new Blob([source], { type }));
  const before = hide;
  hide = (text) => before(text).replaceAll(url, name); // for good: errors of user code may name it at any time
  try {
    return await import(url);
  } finally {
    revokeObjectURL(url);
  }
}

/**
 * The JavaScript of a classic script written in TypeScript, or null. Deno translates modules only, so we hand it one
 * that holds the script in a function, which nobody calls, and take the function's text.
 */
async function stripTypes(source, name) {
  if (/^\s*(import|export)\b/m.test(source)) return null;
  try {
    const module = await importAs('application/typescript', `export default (function () {\n${source}\n})`, name);
    const text = String(module.default);
    const body = text.slice(text.indexOf('{') + 1, text.lastIndexOf('}'));
    return compiles(body) ? body : null;
  } catch {
    return null;
  }
}

const isParseError = (error) => error instanceof TypeError && error.message.startsWith('SyntaxError: ') || error instanceof SyntaxError;

async function loadModule(source, name) {
  let module;
  try {
    module = await importAs('text/javascript', source, name).catch((error) => {
      if (!isParseError(error)) throw error;
      return importAs('application/typescript', source, name);
    });
  } catch (error) {
    const text = foreign(error);
    throw text === null ? error : new Unfit(text);
  }
  if (typeof module.default !== 'function') throw new Unfit('a module must `export default` a function');
  return module.default;
}

function loadScript(source, name) {
  const [value, failure] = core.evalContext(source, `file:///${name}`);
  if (failure) throw failure.thrown;
  if (typeof value !== 'function') throw new Unfit("the script's value is not a function");
  return value;
}

async function load(source, { name, environment }) {
  code = source;
  hide = (text) => text.replaceAll(`file:///${name}`, name);
  const env = install(environment);
  const script = compiles(source) ? source : await stripTypes(source, name);
  isScript = script !== null;
  return [isScript ? loadScript(script, name) : await loadModule(source, name), env];
}

// ---------------------------------------------------------------------------------------------------------------
// From a value to the bytes of a reply.

function toBytes(value) {
  if (value instanceof Uint8Array) return value;
  if (value instanceof ArrayBuffer) return new Uint8Array(value);
  if (ArrayBuffer.isView(value)) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  if (isScript) return encoder.encode(String(stringify(value))); // as 0.2: a script without a value answers `undefined`
  if (value === undefined) return EMPTY;
  if (typeof value === 'string') return encoder.encode(value);
  const text = stringify(value);
  if (text === undefined) throw new TypeError(`a ${typeof value} cannot be a reply`);
  return encoder.encode(text);
}

function answer(id, value) {
  let head = EMPTY;
  if (value instanceof Reply) {
    head = encoder.encode(stringify(value.headers));
    value = value.payload;
  }
  const body = toBytes(value);
  if (body.length > resultBytes) send(TOO_LARGE, id, EMPTY, EMPTY);
  else send(RESULT, id, head, body);
}

/** Do once what the first function will need, on sources that leave nothing. */
async function warm() {
  const before = hide;
  compiles('0');
  core.evalContext('(subject, payload) => payload', 'file:///warm');
  await importAs('application/typescript', 'import { kv } from "nex"; export default (value: number) => kv', 'warm');
  describe(new Error('warm'));
  hide = before;
}

/** Have Math.random begin anew: clones of the machine in which we waited would all draw the engine's own numbers. */
function reseed() {
  let [a, b, c, d] = crypto.getRandomValues(new Uint32Array(4));
  const next = () => { // sfc32
    const t = (a + b | 0) + d | 0;
    d = d + 1 | 0; a = b ^ b >>> 9; b = c + (c << 3) | 0; c = (c << 21 | c >>> 11) + t | 0;
    return t >>> 0;
  };
  const { random } = { random() { return ((next() >>> 5) * 2 ** 26 + (next() >>> 6)) / 2 ** 53; } };
  Object.defineProperty(Math, 'random', { value: random, writable: true, enumerable: false, configurable: true });
}

async function main() {
  installServices();
  setInterval(() => {}, 1 << 30); // an event loop with nothing to do would end us while a user's promise is pending
  let first = receive();
  if (first !== null && first.kind === WARM) {
    await warm();
    send(READY, first.id, EMPTY, EMPTY);
    first = receive();
    reseed();
  }
  if (first === null || first.kind !== LOAD) return;
  let fn, env;
  try {
    const settings = parse(decoder.decode(first.head));
    resultBytes = settings.resultBytes;
    [fn, env] = await load(decoder.decode(first.body), settings);
    if (isAsking()) await giveUp();
  } catch (error) {
    const [text, detail] = describeLoad(error);
    fail(first.id, text, detail);
    return;
  }
  send(READY, first.id, EMPTY, EMPTY);
  const plain = Object.freeze({ headers: Object.freeze(Object.create(null)), env });
  let garbage = 0;
  for (let frame = receive(); frame !== null && frame.kind === CALL; frame = receive()) {
    try {
      let subject = decoder.decode(frame.head), context = plain;
      const cut = subject.indexOf('\0');
      if (cut >= 0) {
        context = { headers: { __proto__: null, ...parse(subject.slice(cut + 1)) }, env };
        subject = subject.slice(0, cut);
      }
      let value = fn.call(globalThis, subject, frame.body, context);
      if (value !== null && typeof value === 'object' && typeof value.then === 'function') value = await value;
      if (isAsking()) await giveUp();
      answer(frame.id, value);
    } catch (error) {
      if (isAsking()) await giveUp();
      const [text, detail] = describe(error);
      fail(frame.id, text, detail);
    }
    // Payloads lie outside the heap, so the engine is late to see that they are garbage: 100 MB would gather.
    garbage += frame.body.length;
    if (garbage > COLLECT_BYTES) {
      garbage = 0;
      collect({ type: 'minor' });
    }
  }
}

await main();
