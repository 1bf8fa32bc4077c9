//! `GET /v1/models` and `GET /v1/models/{id}`. Ids may hold slashes.

use crate::app::App;
use crate::backend::Backend;
use crate::error::ApiError;
use actix_web::HttpResponse;
use actix_web::web::{Data, Path};
use mlxd_dispatch::{CatalogEntry, StandsFor};
use serde_json::{Value, json};

/// Every model that a request may name.
pub(crate) async fn list<B: Backend>(app: Data<App<B>>) -> HttpResponse {
    let entries = app.backend.catalog().await;
    let data: Vec<Value> = entries.iter().map(model_object).collect();
    HttpResponse::Ok().json(json!({"object": "list", "data": data}))
}

/// One model, by its name or by an alias.
pub(crate) async fn one<B: Backend>(
    app: Data<App<B>>,
    name: Path<String>,
) -> Result<HttpResponse, ApiError> {
    let find = |entries: &[CatalogEntry], name: &str| {
        entries.iter().find(|entry| entry.listed.id == name).map(model_object)
    };
    let entries = app.backend.catalog().await;
    if let Some(object) = find(&entries, &name) {
        return Ok(HttpResponse::Ok().json(object));
    }
    // A folder by its path is not listed.
    let model = app.backend.open_model(&name).await?;
    let id = model.id.as_str();
    let object = find(&entries, id).unwrap_or_else(|| {
        json!({
            "id": id,
            "object": "model",
            "created": 0,
            "owned_by": "local",
            "context_tokens": model.context_tokens,
        })
    });
    Ok(HttpResponse::Ok().json(object))
}

/// OpenAI's four fields, then what a client here may want to know besides.
fn model_object(entry: &CatalogEntry) -> Value {
    let mut object = json!({
        "id": entry.listed.id,
        "object": "model",
        "created": entry.listed.created_unix_s,
        "owned_by": entry.listed.owned_by,
        "loaded": entry.loaded,
        "context_tokens": entry.context_tokens,
    });
    match &entry.listed.stands_for {
        None => {}
        Some(StandsFor::Model(name)) => object["alias_of"] = json!(name),
        Some(StandsFor::OneOf(names)) => object["one_of"] = json!(names),
    }
    object
}
