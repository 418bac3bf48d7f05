// Called when an object store changes. The payload describes the object, in JSON.
(subject, payload, { headers }) => {
  const what = headers["Nex-Operation"] === "put" ? `has ${headers["Nex-Size"]} bytes` : "was removed";
  console.log(`${headers["Nex-Object"]} ${what}`);
};
