// Called by the clock, or by hand: puts an event into a stream, and has done its part when that is stored.
import { messaging } from "nex";

export default async (subject, payload, { headers }) => {
  const time = headers["Nex-Scheduled-Time"] ?? new Date().toISOString();
  const stored = (await messaging.request("report.due", time)).json();
  if (stored.error) throw new Error(`no report is due: ${stored.error.description}`);
};
