(subject, payload) => { // a millisecond of work, as a function that computes something does
  const end = performance.now() + 1;
  while (performance.now() < end);
  return payload;
};
