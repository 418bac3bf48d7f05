// Called for each new order of a stream. What it throws is tried again.
(subject, payload, { headers }) => {
  const order = JSON.parse(new TextDecoder().decode(payload));
  if (!(order.amount > 0)) throw new Error("an order without an amount");
  console.log(`order ${headers["Nex-Sequence"]}: ${order.amount} on ${subject}, try ${headers["Nex-Delivered"]}`);
};
