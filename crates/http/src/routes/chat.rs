//! `POST /v1/chat/completions`.

use crate::app::{App, parse};
use crate::backend::Backend;
use crate::error::ApiError;
use crate::openai::answer::Shape;
use crate::openai::chat::ValidChat;
use crate::routes::submit::Submission;
use crate::{body, prepare};
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};

/// Answers a conversation.
pub(crate) async fn chat<B: Backend>(
    request: HttpRequest,
    payload: Payload,
    app: Data<App<B>>,
) -> Result<HttpResponse, ApiError> {
    let bytes = body::read(&request, payload, &app.limits, &app.metrics).await?;
    let size = bytes.len();
    let chat = parse(&app, bytes, ValidChat::parse).await?;
    let place = app.start_answer()?;
    let model = app.backend.open_model(&chat.common.model).await?;
    let (asked, common) = (model.clone(), chat.common.clone());
    let tokens_max = app.limits.request.prompt_tokens_max;
    let segments = app.preparer.segments();
    let prepare = move || prepare::chat(&asked, &chat, &segments, tokens_max);
    let prepared = app.preparer.prepare(size, prepare).await?;
    let prompts = vec![prepared];
    let submission = Submission { model, common, shape: Shape::Chat, prompts, place };
    submission.respond(&app, &request).await
}
