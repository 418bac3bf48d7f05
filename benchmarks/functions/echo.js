(subject, payload) => payload;
