//! `POST /v1/completions`.

use crate::app::{App, parse};
use crate::backend::Backend;
use crate::body;
use crate::error::ApiError;
use crate::openai::completion::ValidCompletion;
use crate::routes::submit::submit;
use crate::routing::Wanted;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use std::sync::Arc;

/// Continues bare prompts.
pub(crate) async fn complete<B: Backend>(
    request: HttpRequest,
    payload: Payload,
    app: Data<App<B>>,
) -> Result<HttpResponse, ApiError> {
    let bytes = body::read(&request, payload, &app.limits, &app.metrics).await?;
    let size = bytes.len();
    let completion = parse(&app, bytes, ValidCompletion::parse).await?;
    submit(&app, &request, Wanted::Completion(Arc::new(completion)), size).await
}
