// A function as a module in TypeScript. It may be async, reads the message's headers and answers with its own.
interface Context {
  headers: Record<string, string>;
  env: Record<string, string>;
}

declare const Reply: new (payload: Uint8Array | string, headers: Record<string, string>) => unknown;

export default async function echo(subject: string, payload: Uint8Array, { headers, env }: Context) {
  const greeting = env.GREETING ?? "echo";
  console.info(`${greeting}: ${payload.length} bytes on ${subject}`);
  return new Reply(payload, { ...headers, "Echo-Subject": subject });
}
