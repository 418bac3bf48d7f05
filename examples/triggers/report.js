// Called for each report that is due, until it has worked.
(subject, payload, { headers }) => {
  const time = new TextDecoder().decode(payload);
  console.log(`the report of ${time}, try ${headers["Nex-Delivered"]}`);
};
