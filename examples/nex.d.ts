// What functions in JavaScript and TypeScript find, for editors and type checkers.
//
// tsconfig.json:  { "compilerOptions": { "paths": { "nex": ["./nex.d.ts"] }, "lib": ["esnext", "dom"], "noEmit": true } }
// deno.json:      { "imports": { "nex": "./nex.d.ts" } }

/** What may be sent or kept; a string as UTF-8. */
export type Bytes = string | Uint8Array | ArrayBuffer | ArrayBufferView;

export type ErrorCode =
  | "invalid" | "denied" | "not_found" | "conflict" | "too_large" | "too_many"
  | "timeout" | "unavailable" | "disabled" | "failed";

/** A call of a host service that failed. */
export declare class HostError extends Error {
  readonly code: ErrorCode;
  /** As in HTTP. */
  readonly status: number;
}

/** A value of a key. */
export interface Entry {
  readonly key: string;
  readonly value: Uint8Array;
  readonly revision: number;
  readonly operation: "put" | "delete" | "purge";
  /** Not from `get`. */
  readonly created?: Date;
  string(): string;
  json<T = any>(): T;
}

/** Milliseconds, at least 1000, after which a value is gone. */
export interface Lifetime { ttl?: number }

export interface KeyValue {
  /** The latest value, or that of a revision; null if there is none. */
  get(key: string, options?: { revision?: number }): Promise<Entry | null>;
  /** Gives the new revision, as do `put`, `create` and `update`. */
  set(key: string, value: Bytes, options?: Lifetime): Promise<number>;
  put(key: string, value: Bytes, options?: Lifetime): Promise<number>;
  /** Fails with `conflict` if the key has a value. */
  create(key: string, value: Bytes, options?: Lifetime): Promise<number>;
  /** Fails with `conflict` unless `revision` is the latest. */
  update(key: string, value: Bytes, revision: number, options?: Lifetime): Promise<number>;
  delete(key: string, options?: { revision?: number; purge?: boolean }): Promise<void>;
  /** Delete a key with its history. */
  purge(key: string): Promise<void>;
  /** In order; the filter is a subject with wildcards, as in `orders.*`. */
  keys(filter?: string): Promise<string[]>;
  /** Oldest first. */
  history(key: string): Promise<Entry[]>;
  /** What there is, then every change, or with `updates` the changes alone. */
  watch(filter?: string, options?: { updates?: boolean }): AsyncGenerator<Entry, void>;
}

export interface ObjectInfo {
  name: string;
  bucket: string;
  nuid: string;
  size: number;
  chunks: number;
  mtime: string;
  digest?: string;
  description?: string;
  metadata?: Record<string, string>;
}

export interface ObjectOptions { description?: string; metadata?: Record<string, string> }

export interface ObjectStore {
  get(name: string): Promise<Uint8Array | null>;
  /** The object as a stream. */
  open(name: string): Promise<ReadableStream<Uint8Array> | null>;
  put(name: string, value: Bytes | Blob | ReadableStream<Bytes>, options?: ObjectOptions): Promise<ObjectInfo>;
  info(name: string): Promise<ObjectInfo | null>;
  delete(name: string): Promise<void>;
  list(): Promise<ObjectInfo[]>;
}

export interface Message {
  readonly data: Uint8Array;
  readonly headers: Record<string, string>;
  string(): string;
  json<T = any>(): T;
}

export interface MessageOptions { headers?: Record<string, string> }

export interface Messaging {
  publish(subject: string, payload?: Bytes, options?: MessageOptions): Promise<void>;
  /** The first reply; `timeout` in milliseconds. */
  request(subject: string, payload?: Bytes, options?: MessageOptions & { timeout?: number }): Promise<Message>;
  /** All replies until `timeout`, until there are `most`, or until none has come for `stall` milliseconds. */
  requestMany(
    subject: string,
    payload?: Bytes,
    options?: MessageOptions & { timeout?: number; stall?: number; most?: number },
  ): Promise<Message[]>;
}

export interface Http {
  /** As the global `fetch`, which is the same; `timeout` in milliseconds is for the exchange as a whole. */
  fetch(input: string | URL | Request, init?: RequestInit & { timeout?: number }): Promise<Response>;
}

/** The workload's own bucket; `bucket(name)` is one that its deploy has bound. */
export declare const kv: KeyValue & { bucket(name: string): KeyValue };
export declare const objectStore: ObjectStore & { bucket(name: string): ObjectStore };
export declare const messaging: Messaging;
export declare const http: Http;

/** An answer with headers. */
export declare class Reply {
  constructor(payload?: unknown, headers?: Record<string, string>);
}

export interface HttpResult {
  status: number;
  headers: Record<string, string>;
  /** The body as text, if there is any. */
  response?: string;
  readonly bytes: Uint8Array;
}

export interface HttpOptions { headers?: HeadersInit; timeout?: number; redirect?: "follow" | "manual" }

interface BlockingKeyValue {
  get(key: string, options?: { revision?: number }): Uint8Array;
  set(key: string, value: Bytes, options?: Lifetime): void;
  create(key: string, value: Bytes, options?: Lifetime): number;
  update(key: string, value: Bytes, revision: number, options?: Lifetime): number;
  delete(key: string, options?: { revision?: number; purge?: boolean }): void;
  keys(filter?: string): string[];
  /** As `get`, with the revision; null if there is none. */
  entry(key: string, options?: { revision?: number }): Entry | null;
  history(key: string): Entry[];
  watch(filter?: string, options?: { updates?: boolean }): Generator<Entry, void>;
}

interface BlockingObjectStore {
  get(name: string): Uint8Array;
  put(name: string, value: Bytes, options?: ObjectOptions): ObjectInfo;
  info(name: string): ObjectInfo | null;
  delete(name: string): void;
  list(): ObjectInfo[];
}

interface HostServices {
  readonly kv: BlockingKeyValue & { bucket(name: string): BlockingKeyValue };
  readonly objectStore: BlockingObjectStore & { bucket(name: string): BlockingObjectStore };
  readonly messaging: {
    publish(subject: string, payload: Bytes, options?: MessageOptions): void;
    request(subject: string, payload: Bytes, options?: MessageOptions & { timeout?: number }): Uint8Array;
    requestMany(
      subject: string,
      payload: Bytes,
      options?: MessageOptions & { timeout?: number; stall?: number; most?: number },
    ): Uint8Array[];
  };
  readonly http: {
    get(url: string | URL, options?: HttpOptions): HttpResult;
    head(url: string | URL, options?: HttpOptions): HttpResult;
    delete(url: string | URL, options?: HttpOptions): HttpResult;
    post(url: string | URL, payload: Bytes, options?: HttpOptions): HttpResult;
    put(url: string | URL, payload: Bytes, options?: HttpOptions): HttpResult;
    patch(url: string | URL, payload: Bytes, options?: HttpOptions): HttpResult;
  };
}

/** What a function gets beside subject and payload. */
export interface Context {
  readonly headers: Record<string, string>;
  readonly env: Record<string, string>;
}

type ReplyClass = typeof Reply;

declare global {
  /** As that of "nex", for scripts. */
  const Reply: ReplyClass;
  interface RequestInit {
    /** Milliseconds for the exchange as a whole. */
    timeout?: number;
  }
  /** The host services as in Nex 0.2: each call blocks until its answer is there. */
  const hostServices: HostServices;
  /** The workload's environment. */
  const env: Record<string, string>;
}
