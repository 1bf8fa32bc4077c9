//! `GET` and `DELETE /v1/cache`: what is kept for prompts that begin as earlier ones did.

use crate::app::App;
use crate::backend::Backend;
use crate::error::ApiError;
use actix_web::web::{Data, Json, Query};
use mlxd_protocol::admin::{AdminErrorBody, CacheReport};
use serde::Deserialize;

#[derive(Deserialize)]
pub(crate) struct Which {
    /// A model's name; without it every model that was asked for is meant.
    model: Option<String>,
}

type Answer = Result<Json<CacheReport>, ApiError>;

/// Shows it.
pub(crate) async fn show<B: Backend>(app: Data<App<B>>, which: Query<Which>) -> Answer {
    app.backend.cache(which.model.as_deref()).await.map(Json).map_err(refused)
}

/// Drops it, and says how much that was.
pub(crate) async fn clear<B: Backend>(app: Data<App<B>>, which: Query<Which>) -> Answer {
    app.backend.clear_cache(which.model.as_deref()).await.map(Json).map_err(refused)
}

fn refused(AdminErrorBody { code, message }: AdminErrorBody) -> ApiError {
    match code.as_str() {
        "unknown_model" => ApiError::UnknownModel { message },
        "load_failed" => ApiError::BrokenModel { message },
        _ => ApiError::Internal { message },
    }
}
