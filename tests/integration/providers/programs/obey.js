(subject, payload, { headers }) => {
  const text = new TextDecoder().decode(payload);
  const rest = text.slice(text.indexOf(":") + 1);
  switch (text.split(":", 1)[0]) {
    case "echo": return payload.subarray(5);
    case "subject": return new TextEncoder().encode(subject);
    case "variable": return new TextEncoder().encode(env[rest] ?? "");
    case "variables": return new TextEncoder().encode(Object.keys(env).join(","));
    case "header": return new TextEncoder().encode(headers[rest] ?? "");
    case "fail": throw new Error("as you\nwish");
    case "spin": for (;;);
    case "allocate": for (const kept = []; ;) kept.push(new Array(10000).fill(kept.length));
    case "large": return new Uint8Array(Number(rest));
    case "log": return console.log(rest), null;
    case "flood": for (;;) console.log("x".repeat(100000));
  }
}
