//! Counts the messages on each subject in the workload's key-value store, and answers how many there were.
//!
//! Without any crate: `rustc --target wasm32-wasip1 -O counter.rs`. The functions are those of
//! docs/reference/wasm-abi.md; each text is an address and a size.

mod nex {
    #[link(wasm_import_module = "nex")]
    extern "C" {
        fn kv_get(bucket: *const u8, bucket_size: usize, key: *const u8, key_size: usize, revision: i64) -> i32;
        fn kv_create(
            bucket: *const u8, bucket_size: usize, key: *const u8, key_size: usize,
            value: *const u8, value_size: usize, ttl_ms: i64,
        ) -> i32;
        fn kv_update(
            bucket: *const u8, bucket_size: usize, key: *const u8, key_size: usize,
            value: *const u8, value_size: usize, revision: i64, ttl_ms: i64,
        ) -> i32;
        fn result_read(into: *mut u8, size: usize) -> i32;
        fn result_number(name: *const u8, name_size: usize) -> i64;
        fn error_message(into: *mut u8, size: usize) -> i32;
        fn reply_header(name: *const u8, name_size: usize, value: *const u8, value_size: usize) -> i32;
    }

    pub const NOT_FOUND: i32 = 404;
    pub const CONFLICT: i32 = 409;

    /// What went wrong: its code, and a text for people.
    #[derive(Debug)]
    pub struct Error {
        pub code: i32,
        pub message: String,
    }

    fn last_error(code: i32) -> Error {
        let mut text = vec![0; 1024];
        let size = unsafe { error_message(text.as_mut_ptr(), text.len()) };
        text.truncate(size.max(0) as usize);
        Error { code, message: String::from_utf8_lossy(&text).into_owned() }
    }

    fn checked(code: i32) -> Result<(), Error> {
        if code == 0 { Ok(()) } else { Err(last_error(code)) }
    }

    /// The value and the revision of a key of the workload's own bucket; none if it has no value.
    pub fn get(key: &str) -> Result<Option<(Vec<u8>, i64)>, Error> {
        let code = unsafe { kv_get([].as_ptr(), 0, key.as_ptr(), key.len(), 0) };
        if code == NOT_FOUND {
            return Ok(None);
        }
        checked(code)?;
        let name = "revision";
        let revision = unsafe { result_number(name.as_ptr(), name.len()) };
        let (mut value, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            match unsafe { result_read(piece.as_mut_ptr(), piece.len()) } {
                0 => return Ok(Some((value, revision))),
                size if size > 0 => value.extend_from_slice(&piece[..size as usize]),
                _ => return Err(last_error(500)),
            }
        }
    }

    /// Set the value of a key whose revision is still this one, and none without one.
    pub fn put(key: &str, value: &[u8], revision: Option<i64>) -> Result<(), Error> {
        let none = [].as_ptr();
        checked(unsafe {
            match revision {
                None => kv_create(none, 0, key.as_ptr(), key.len(), value.as_ptr(), value.len(), 0),
                Some(it) => kv_update(none, 0, key.as_ptr(), key.len(), value.as_ptr(), value.len(), it, 0),
            }
        })
    }

    /// Give the reply a header.
    pub fn header(name: &str, value: &str) -> Result<(), Error> {
        checked(unsafe { reply_header(name.as_ptr(), name.len(), value.as_ptr(), value.len()) })
    }
}

fn count(key: &str) -> Result<u64, nex::Error> {
    loop {
        let (count, revision) = match nex::get(key)? {
            Some((value, revision)) => (String::from_utf8_lossy(&value).parse().unwrap_or(0), Some(revision)),
            None => (0u64, None),
        };
        match nex::put(key, (count + 1).to_string().as_bytes(), revision) {
            Err(error) if error.code == nex::CONFLICT => continue,
            done => return done.map(|()| count + 1),
        }
    }
}

fn main() {
    let subject = std::env::args().nth(1).unwrap_or_default();
    match count(&subject).and_then(|count| nex::header("Content-Type", "text/plain").map(|()| count)) {
        Ok(count) => print!("{count}"),
        Err(error) => {
            eprintln!("{}: {}", error.code, error.message);
            std::process::exit(1);
        }
    }
}
