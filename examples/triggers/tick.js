// Called by the clock.
(subject, payload, { headers }) => {
  console.log(`it is ${headers["Nex-Scheduled-Time"]}, says ${headers["Nex-Trigger"]}`);
};
