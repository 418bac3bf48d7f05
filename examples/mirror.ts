// Fetches the URL that it is sent into the object store and tells others. The body is never in memory as a whole.
// nex devrun examples/mirror.ts --trigger-subject mirror
import { http, messaging, objectStore } from "nex";

export default async function mirror(_subject: string, payload: Uint8Array) {
  const url = new TextDecoder().decode(payload);
  const response = await http.fetch(url, { signal: AbortSignal.timeout(4000) });
  if (!response.ok || !response.body) return { url, status: response.status };
  const type = response.headers.get("Content-Type") ?? "";
  const { size, digest } = await objectStore.put(new URL(url).pathname, response.body, { metadata: { url, type } });
  await messaging.publish("mirrored", JSON.stringify({ url, size }));
  return { url, status: response.status, size, digest };
}
