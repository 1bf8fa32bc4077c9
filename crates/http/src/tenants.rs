//! Who asks, by the API key that a request presents: keys with a weight of their own share a busy
//! model by these weights. Every key is accepted; this is about turns, not about who may.

use actix_web::http::header::{self, HeaderMap, HeaderName};
use mlxd_dispatch::Tenant;
use std::collections::HashMap;

/// How Anthropic's clients present theirs.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Keys and their tenants.
#[derive(Debug, Default)]
pub(crate) struct Tenants(HashMap<String, Tenant>);

impl Tenants {
    /// Each key is a tenant; everybody else is one together.
    pub(crate) fn new(weights: &[(String, u32)]) -> Self {
        let tenant = |(id, (key, weight)): (u32, &(String, u32))| {
            (key.clone(), Tenant { id, weight: (*weight).max(1) })
        };
        Self((1..).zip(weights).map(tenant).collect())
    }

    /// The tenant of a request.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Tenant {
        if self.0.is_empty() {
            return Tenant::default();
        }
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text(header::AUTHORIZATION).and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
        let key = bearer.or_else(|| text(API_KEY));
        key.and_then(|key| self.0.get(key)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::HeaderValue;

    #[test]
    fn known_keys_are_told_apart_and_all_others_are_one() {
        let tenants = Tenants::new(&[("agent".into(), 1), ("me".into(), 4)]);
        let of = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            let tenant = tenants.of(&headers);
            (tenant.id, tenant.weight)
        };
        assert_eq!(of("authorization", "Bearer agent"), (1, 1));
        assert_eq!(of("authorization", "bearer  me "), (2, 4));
        assert_eq!(of("x-api-key", "me"), (2, 4));
        for other in ["Bearer none", "Basic me", "me", ""] {
            assert_eq!(of("authorization", other), (0, 1), "{other:?}");
        }
        assert_eq!(Tenants::default().of(&HeaderMap::new()), Tenant::default());
    }
}
