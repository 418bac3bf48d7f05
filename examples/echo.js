// A function as a classic script: the value of its last expression is the function.
// Deploy it with a trigger:  nex devrun examples/echo.js --trigger_subject echo.js
(subject, payload) => {
  const text = new TextDecoder().decode(payload);
  console.log(`${payload.length} bytes on ${subject}`);
  return { triggered_on: subject, payload: text }; // goes back as JSON
};
