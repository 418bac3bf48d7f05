// Keeps what it is sent in the workload's own key-value bucket, and tells what is there.
// nex devrun examples/kv.js --trigger_subject kv.js      then: nats request kv.js 'hello!'
(subject, payload) => {
  const { kv } = hostServices;
  kv.set("hello", payload);
  kv.delete("hello");
  kv.set("hello2", payload);
  return { keys: kv.keys(), hello2: new TextDecoder().decode(kv.get("hello2")) };
};
