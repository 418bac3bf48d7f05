(subject, payload) => hostServices.kv.bucket("bench").get("key");
