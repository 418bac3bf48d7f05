// Called when a price in a key-value bucket changes.
(subject, payload, { headers }) => {
  const key = headers["Nex-Key"];
  const value = new TextDecoder().decode(payload);
  console.log(headers["Nex-Operation"] === "put" ? `${key} is ${value} now` : `${key} is gone`);
};
