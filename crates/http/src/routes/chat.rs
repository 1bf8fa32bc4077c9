//! `POST /v1/chat/completions`.

use crate::app::{App, parse};
use crate::backend::Backend;
use crate::body;
use crate::error::ApiError;
use crate::openai::chat::ValidChat;
use crate::routes::submit::submit;
use crate::routing::Wanted;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use std::sync::Arc;

/// Answers a conversation.
pub(crate) async fn chat<B: Backend>(
    request: HttpRequest,
    payload: Payload,
    app: Data<App<B>>,
) -> Result<HttpResponse, ApiError> {
    let bytes = body::read(&request, payload, &app.limits, &app.metrics).await?;
    let size = bytes.len();
    let chat = parse(&app, bytes, ValidChat::parse).await?;
    submit(&app, &request, Wanted::Chat(Arc::new(chat)), size).await
}
