//! `POST /v1/completions`.

use crate::app::{App, parse};
use crate::backend::Backend;
use crate::error::ApiError;
use crate::openai::answer::Shape;
use crate::openai::completion::ValidCompletion;
use crate::routes::submit::Submission;
use crate::{body, prepare};
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};

/// Continues bare prompts.
pub(crate) async fn complete<B: Backend>(
    request: HttpRequest,
    payload: Payload,
    app: Data<App<B>>,
) -> Result<HttpResponse, ApiError> {
    let bytes = body::read(&request, payload, &app.limits, &app.metrics).await?;
    let size = bytes.len();
    let ValidCompletion { common, prompts, echo } =
        parse(&app, bytes, ValidCompletion::parse).await?;
    let place = app.start_answer()?;
    let model = app.backend.open_model(&common.model).await?;
    let asked = model.clone();
    let tokens_max = app.limits.request.prompt_tokens_max;
    let encode = move || {
        let one = |prompt| prepare::completion(&asked, prompt, echo, tokens_max);
        prompts.into_iter().map(one).collect::<Result<Vec<_>, _>>()
    };
    let prompts = app.preparer.prepare(size, encode).await?;
    let submission = Submission { model, common, shape: Shape::Text, prompts, place };
    submission.respond(&app, &request).await
}
