//! The server's requests, without the server.

#[allow(dead_code)]
#[path = "../src/serve/request.rs"]
pub(crate) mod request;
