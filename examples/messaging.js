// Publishes what it is sent, asks others about it, and answers with their replies.
// nex devrun examples/messaging.js --trigger_subject messaging.js
(subject, payload) => {
  const { messaging } = hostServices;
  const text = (bytes) => new TextDecoder().decode(bytes);
  messaging.publish("hello.world", payload);
  try {
    return {
      "hello.world.request": text(messaging.request("hello.world.request", payload)),
      "hello.world.request.many": messaging.requestMany("hello.world.request.many", payload).map(text),
    };
  } catch (error) { // a HostError: error.code says what went wrong, "unavailable" if nobody listens there
    return { "hello.world.request.ex": error };
  }
};
