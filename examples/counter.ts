// Counts the messages of each subject, however many copies of this function run: a change is only made to the value it
// was computed from, and is tried again if another copy was quicker.
// nex devrun examples/counter.ts --trigger-subject 'count.*'
import { HostError, kv } from "nex";

export default async function count(subject: string): Promise<number> {
  for (;;) {
    const entry = await kv.get(subject);
    const next = (entry?.json<number>() ?? 0) + 1;
    try {
      if (entry) await kv.update(subject, String(next), entry.revision);
      else await kv.create(subject, String(next));
      return next;
    } catch (error) {
      if (!(error instanceof HostError && error.code === "conflict")) throw error;
    }
  }
}
