// Makes requests to the URL that it is sent; the node must allow its host.
// nex devrun examples/http.js --trigger_subject http.js
(subject, payload) => {
  const { http } = hostServices;
  const url = new TextDecoder().decode(payload);
  const brief = ({ status, headers, response }) => ({ status, headers, length: response?.length ?? 0, body: response });
  return {
    get: brief(http.get(url, { headers: { Accept: "text/plain" }, timeout: 2000 })),
    post: brief(http.post(url, "hello")),
    put: brief(http.put(url, "hello")),
    patch: brief(http.patch(url, new Uint8Array([1, 2, 255]), { headers: { "Content-Type": "application/octet-stream" } })),
    delete: brief(http.delete(url)),
    head: brief(http.head(url)),
  };
};
