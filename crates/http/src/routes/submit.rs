//! From prepared prompts to a response: what chat and text completions do alike.

use crate::app::App;
use crate::backend::Backend;
use crate::error::ApiError;
use crate::metrics::InFlight;
use crate::openai::answer::{Head, Shape};
use crate::openai::common::{Common, DEADLINE_S_MAX, Keep};
use crate::prepare::{self, Prepared};
use crate::request_id::{TraceId, random_id};
use crate::respond::answer::Answer;
use crate::respond::choice::Choice;
use crate::respond::sse::SseBody;
use crate::streams::body::KeptBody;
use crate::streams::drive::drive;
use actix_web::body::MessageBody;
use actix_web::http::header;
use actix_web::web::Data;
use actix_web::{HttpMessage, HttpRequest, HttpResponse, HttpResponseBuilder};
use mlxd_dispatch::{Job, OpenModel};
use mlxd_protocol::Priority;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A request that is ready to be generated.
pub(crate) struct Submission {
    pub(crate) model: OpenModel,
    pub(crate) common: Common,
    pub(crate) shape: Shape,
    pub(crate) prompts: Vec<Prepared>,
    pub(crate) place: InFlight,
}

impl Submission {
    /// Generates and answers, streamed or not.
    pub(crate) async fn respond<B: Backend>(
        mut self,
        app: &Data<App<B>>,
        request: &HttpRequest,
    ) -> Result<HttpResponse, ApiError> {
        let model = self.model.id.clone();
        if self.common.deadline.is_none() {
            self.common.deadline = deadline_of(request)?;
        }
        let outcome = self.respond_now(app, request).await;
        outcome.map_err(|error| {
            error.come_back_after(|| app.retry_after_s(app.backend.retry_after(&model)))
        })
    }

    async fn respond_now<B: Backend>(
        self,
        app: &Data<App<B>>,
        request: &HttpRequest,
    ) -> Result<HttpResponse, ApiError> {
        let stream = self.common.stream;
        if let Some(keep) = self.common.keep.or_else(|| keep_of(request)).filter(|_| stream) {
            return self.respond_kept(app, request, keep).await;
        }
        let mut answer = self.start(app, request)?;
        if !stream {
            let body = answer.collect().await?;
            let mut response = HttpResponse::Ok();
            put_queue_wait(&mut response, answer.queue_wait());
            return Ok(response.content_type("application/json").body(body));
        }
        // The head waits for the first token, so that what fails before it has its own status;
        // but not for so long that the client gives up.
        let (ping, progress) = (app.limits.stream_ping, app.limits.stream_progress);
        let patience = progress.unwrap_or(ping).min(ping);
        let first = tokio::time::timeout(patience, poll_fn(|cx| answer.poll_news(cx))).await;
        if let (Ok(()), Some(error)) = (first, answer.error.take()) {
            return Err(error);
        }
        let wait = answer.queue_wait();
        Ok(event_stream(wait, SseBody::new(answer, ping, progress)))
    }

    /// Generates a stream that is kept, and answers with its events.
    async fn respond_kept<B: Backend>(
        self,
        app: &Data<App<B>>,
        request: &HttpRequest,
        keep: Keep,
    ) -> Result<HttpResponse, ApiError> {
        let trace = trace_of(request);
        let (stream, reader) = app.streams.open(&trace.0, keep)?;
        let answer = self.start(app, request).inspect_err(|_| app.streams.withdraw(&stream))?;
        app.streams.alias(&stream, &answer.head.id);
        actix_web::rt::spawn(drive(app.clone(), stream.clone(), answer));
        let ping = app.limits.stream_ping;
        let first = tokio::time::timeout(ping, poll_fn(|cx| reader.poll_first(cx))).await;
        if let Ok(Err(error)) = first {
            return Err(error);
        }
        let wait = stream.queue_wait();
        Ok(event_stream(wait, KeptBody::new(trace.0.to_string(), reader, ping)))
    }

    fn start<B: Backend>(
        self,
        app: &App<B>,
        request: &HttpRequest,
    ) -> Result<Answer<B::Tokens>, ApiError> {
        let Self { model, common, shape, prompts, place } = self;
        check_logit_bias(&common, &model)?;
        let trace = trace_of(request);
        let priority = priority_of(request);
        let tenant = app.tenants.of(request.headers());
        let seed = common.seed.unwrap_or_else(|| fastrand::u64(..));
        let text = &model.text;
        let stop_tokens = match common.ignore_eos {
            true => Arc::default(),
            false => text.defaults.stop_tokens.clone(),
        };
        let mut choices = Vec::with_capacity(prompts.len() * common.n as usize);
        let mut prompt_tokens = 0;
        for prepared in &prompts {
            let prompt = &prepared.prompt;
            prompt_tokens += prompt.len() as u32;
            let room = model.context_tokens - prompt.len() as u32;
            let wanted = common.max_tokens.unwrap_or(app.limits.request.max_tokens_default);
            for _ in 0..common.n {
                let seed = prepare::seed_of_choice(seed, choices.len());
                let tokens = app.backend.generate(Job {
                    model: model.id.clone(),
                    trace: trace.0.clone(),
                    prompt: prompt.clone(),
                    sampling: prepare::sampling(&common, &text.defaults, seed),
                    max_new: wanted.min(room),
                    stop_tokens: stop_tokens.clone(),
                    logprobs: common.logprobs,
                    embed: None,
                    priority,
                    keep_alive: common.keep_alive,
                    tenant,
                    deadline: common.deadline,
                })?;
                choices.push(Choice::new(
                    tokens,
                    &text.tokenizer,
                    prompt,
                    &common.stops,
                    common.logprobs.is_some(),
                    prepared.echo.clone(),
                ));
            }
        }
        let id = random_id(match shape {
            Shape::Chat => "chatcmpl-",
            Shape::Text => "cmpl-",
        });
        let head = Head::new(
            shape,
            id,
            model.id.as_str(),
            unix_seconds(),
            common.include_usage,
            text.tokenizer.clone(),
        );
        Ok(Answer::new(head, choices, prompt_tokens, common.n as usize, place))
    }
}

/// A response of server-sent events. `wait` is how long its sequences waited for their turn.
pub(crate) fn event_stream(
    wait: Option<Duration>,
    body: impl MessageBody + 'static,
) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    put_queue_wait(&mut response, wait);
    response
        .content_type("text/event-stream; charset=utf-8")
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        // Asks nginx and its like not to collect a stream before passing it on.
        .insert_header(("x-accel-buffering", "no"))
        .body(body)
}

pub(crate) fn trace_of(request: &HttpRequest) -> TraceId {
    let trace = request.extensions().get::<TraceId>().cloned();
    trace.unwrap_or_else(|| TraceId::of(request.headers()))
}

/// `X-Resumable: true` or `background`, for clients that cannot add to their request's body.
fn keep_of(request: &HttpRequest) -> Option<Keep> {
    match request.headers().get("x-resumable")?.to_str().ok()?.trim() {
        word if word.eq_ignore_ascii_case("true") => Some(Keep::Paused),
        word if word.eq_ignore_ascii_case("background") => Some(Keep::GoingOn),
        _ => None,
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn check_logit_bias(common: &Common, model: &OpenModel) -> Result<(), ApiError> {
    let size = model.text.tokenizer.vocab_size();
    match common.logit_bias.iter().find(|(id, _)| *id as usize >= size) {
        None => Ok(()),
        Some((id, _)) => Err(ApiError::field(
            format!("logit_bias.{id}"),
            format!("'logit_bias' names the token {id}; the model's ids are 0 to {}", size - 1),
        )),
    }
}

pub(crate) fn put_queue_wait(response: &mut HttpResponseBuilder, wait: Option<Duration>) {
    if let Some(wait) = wait {
        response.insert_header(("x-queue-wait-ms", wait.as_millis().to_string()));
    }
}

/// `X-Request-Timeout-Ms`, or `Request-Timeout-Ms` as newer OpenAI clients send it, for requests
/// whose body names no `timeout`.
pub(crate) fn deadline_of(request: &HttpRequest) -> Result<Option<Duration>, ApiError> {
    let named = |name: &'static str| Some((name, request.headers().get(name)?));
    let given = named("x-request-timeout-ms").or_else(|| named("request-timeout-ms"));
    let Some((name, value)) = given else {
        return Ok(None);
    };
    let ms_max = DEADLINE_S_MAX * 1000.0;
    let ms = value.to_str().ok().and_then(|text| text.trim().parse::<f64>().ok());
    match ms {
        Some(ms) if (1.0..=ms_max).contains(&ms) => Ok(Some(Duration::from_secs_f64(ms / 1000.0))),
        _ => Err(ApiError::field(
            name,
            format!("'{name}' must be a number of milliseconds from 1 to {ms_max}"),
        )),
    }
}

/// `X-Priority: high`, `normal` or `low`; what is none of them is normal.
pub(crate) fn priority_of(request: &HttpRequest) -> Priority {
    let value = request.headers().get("x-priority").and_then(|value| value.to_str().ok());
    match value {
        Some(word) if word.eq_ignore_ascii_case("high") => Priority::High,
        Some(word) if word.eq_ignore_ascii_case("low") => Priority::Low,
        _ => Priority::Normal,
    }
}
