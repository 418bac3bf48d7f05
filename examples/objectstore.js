// Keeps what it is sent as an object in the workload's own bucket, and tells what is there.
// nex devrun examples/objectstore.js --trigger_subject objectstore.js
(subject, payload) => {
  const { objectStore } = hostServices;
  objectStore.put("hello", payload);
  objectStore.put("hello2", payload, { description: `from ${subject}` });
  objectStore.delete("hello");
  return { list: objectStore.list(), hello2: new TextDecoder().decode(objectStore.get("hello2")) };
};
