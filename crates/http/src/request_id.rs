//! The `x-request-id` of a request: the client's own if it is sane, else a new one.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;

/// The header that carries it both ways.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Longest accepted id, in bytes.
const BYTES_MAX: usize = 128;

/// A request's name in headers and log lines.
#[derive(Debug, Clone)]
pub(crate) struct TraceId(pub(crate) Arc<str>);

impl TraceId {
    /// Takes the client's id, or makes one.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(&HEADER).and_then(|value| value.to_str().ok());
        match given.filter(|id| is_sane(id)) {
            Some(id) => Self(id.into()),
            None => Self(random_id("req_").into()),
        }
    }

    pub(crate) fn header_value(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).unwrap_or_else(|_| HeaderValue::from_static("invalid"))
    }
}

/// Short, and nothing that could forge a log line or a header.
fn is_sane(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte);
    !id.is_empty() && id.len() <= BYTES_MAX && id.bytes().all(plain)
}

/// A prefix and 128 random bits.
pub(crate) fn random_id(prefix: &str) -> String {
    format!("{prefix}{:032x}", fastrand::u128(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_for(given: &'static str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_static(given));
        TraceId::of(&headers).0.to_string()
    }

    #[test]
    fn sane_ids_are_kept_and_others_replaced() {
        assert_eq!(id_for("trace-7/a.b:c"), "trace-7/a.b:c");
        for bad in ["", "two words", "tab\tbed", "quote\""] {
            assert!(id_for(bad).starts_with("req_"), "{bad:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_str(&"x".repeat(129)).unwrap());
        assert!(TraceId::of(&headers).0.starts_with("req_"));
        assert_ne!(random_id("a"), random_id("a"));
    }
}
