//! From a checked request to a response: what chat and text completions do alike.

use crate::app::App;
use crate::backend::{Backend, Tokens};
use crate::error::ApiError;
use crate::metrics::InFlight;
use crate::openai::answer::{Head, Shape};
use crate::openai::common::{Common, DEADLINE_S_MAX, Keep};
use crate::prepare;
use crate::request_id::{TraceId, random_id};
use crate::respond::answer::Answer;
use crate::respond::choice::Choice;
use crate::respond::late::LateBody;
use crate::respond::sse::SseBody;
use crate::routing::{Candidate, Routing, Wanted};
use crate::streams::body::KeptBody;
use crate::streams::drive::{drive, drive_when_begun};
use actix_web::body::MessageBody;
use actix_web::http::header::{self, HeaderValue};
use actix_web::web::Data;
use actix_web::{HttpMessage, HttpRequest, HttpResponse, HttpResponseBuilder};
use mlxd_dispatch::{Job, OpenModel, Tenant};
use mlxd_protocol::Priority;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Which model answers.
pub(crate) const MODEL_HEADER: &str = "x-mlxd-model";

/// Answers a request, streamed or not.
pub(crate) async fn submit<B: Backend>(
    app: &Data<App<B>>,
    request: &HttpRequest,
    wanted: Wanted,
    size: usize,
) -> Result<HttpResponse, ApiError> {
    let place = app.start_answer()?;
    let mut common = wanted.common().clone();
    if common.deadline.is_none() {
        common.deadline = deadline_of(request)?;
    }
    let priority = priority_of(request);
    let mut routing = Routing::new(app, wanted.clone(), size, priority);
    let submission = Submission {
        app: app.clone(),
        shape: wanted.shape(),
        keep: match common.keep {
            Some(keep) => Some(keep),
            None => keep_of(request)?,
        }
        .filter(|_| common.stream),
        trace: trace_of(request),
        tenant: app.tenants.of(request.headers()),
        priority,
        common,
    };
    if routing.route().is_some() {
        let outcome = submission.respond_routed(routing, place).await;
        return outcome.map_err(|error| error.come_back_after(|| app.retry_after_s(None)));
    }
    let candidate = routing.next().await?;
    let model = candidate.0.id.clone();
    let outcome = submission.respond(candidate, place).await;
    outcome.map_err(|error| {
        error.come_back_after(|| app.retry_after_s(app.backend.retry_after(&model)))
    })
}

/// A request that is ready to be generated, whichever model does it.
struct Submission<B> {
    app: Data<App<B>>,
    common: Common,
    shape: Shape,
    keep: Option<Keep>,
    trace: TraceId,
    tenant: Tenant,
    priority: Priority,
}

impl<B: Backend> Submission<B> {
    /// Answers with this model.
    async fn respond(
        self,
        candidate: Candidate,
        place: InFlight,
    ) -> Result<HttpResponse, ApiError> {
        let model = candidate.0.id.to_string();
        let mut place = Some(place);
        if let Some(keep) = self.keep {
            let (stream, reader) = self.app.streams.open(&self.trace.0, keep)?;
            let answer = self.start(&candidate, &mut place);
            let answer = answer.inspect_err(|_| self.app.streams.withdraw(&stream))?;
            self.app.streams.alias(&stream, &answer.head.id);
            actix_web::rt::spawn(drive(self.app.clone(), stream.clone(), answer));
            let ping = self.app.limits.stream_ping;
            let first = tokio::time::timeout(ping, poll_fn(|cx| reader.poll_first(cx))).await;
            if let Ok(Err(error)) = first {
                return Err(error);
            }
            let body = KeptBody::new(self.trace.0.to_string(), reader, ping);
            return Ok(event_stream(stream.queue_wait(), Some(&model), body));
        }
        let mut answer = self.start(&candidate, &mut place)?;
        if !self.common.stream {
            return whole(answer).await;
        }
        // The head waits for the first token, so that what fails before it has its own status;
        // but not for so long that the client gives up.
        let (ping, progress) = (self.app.limits.stream_ping, self.app.limits.stream_progress);
        let patience = progress.unwrap_or(ping).min(ping);
        let first = tokio::time::timeout(patience, poll_fn(|cx| answer.poll_news(cx))).await;
        if let (Ok(()), Some(error)) = (first, answer.error.take()) {
            return Err(error);
        }
        let wait = answer.queue_wait();
        Ok(event_stream(wait, Some(&model), SseBody::new(answer, ping, progress)))
    }

    /// Answers with the first model that takes it. Until a token is there, another one may be
    /// tried: nothing is said before but comments.
    async fn respond_routed(
        self,
        routing: Routing<B>,
        place: InFlight,
    ) -> Result<HttpResponse, ApiError> {
        let (app, trace) = (self.app.clone(), self.trace.clone());
        let (stream, keep) = (self.common.stream, self.keep);
        let ping = app.limits.stream_ping;
        if let Some(keep) = keep {
            let (stream, reader) = app.streams.open(&trace.0, keep)?;
            let begun = self.begin(routing, place);
            actix_web::rt::spawn(drive_when_begun(app.clone(), stream.clone(), begun));
            let first = tokio::time::timeout(ping, poll_fn(|cx| reader.poll_first(cx))).await;
            if let Ok(Err(error)) = first {
                return Err(error);
            }
            let model = stream.model();
            let body = KeptBody::new(trace.0.to_string(), reader, ping);
            return Ok(event_stream(stream.queue_wait(), model.as_deref(), body));
        }
        let mut begun = Box::pin(self.begin(routing, place));
        if !stream {
            return whole(begun.await?).await;
        }
        match tokio::time::timeout(ping, &mut begun).await {
            Ok(answer) => {
                let answer = answer?;
                let (wait, model) = (answer.queue_wait(), answer.model.to_string());
                Ok(event_stream(
                    wait,
                    Some(&model),
                    SseBody::new(answer, ping, app.limits.stream_progress),
                ))
            }
            Err(_) => Ok(event_stream(None, None, LateBody::new(begun, trace, ping))),
        }
    }

    /// The answer of the first model that takes it, once its first token is there.
    async fn begin(
        self,
        mut routing: Routing<B>,
        place: InFlight,
    ) -> Result<Answer<B::Tokens>, ApiError> {
        let mut place = Some(place);
        loop {
            let candidate = routing.next().await?;
            let model = &candidate.0.id;
            match self.start(&candidate, &mut place) {
                Err(error) => routing.refuse(model, error)?,
                Ok(mut answer) => {
                    poll_fn(|cx| answer.poll_news(cx)).await;
                    let Some(error) = answer.error.take() else { return Ok(answer) };
                    place = answer.give_up();
                    routing.refuse(model, error)?;
                }
            }
        }
    }

    /// Starts the sequences. The place is taken only when all of them were.
    fn start(
        &self,
        (model, prompts): &Candidate,
        place: &mut Option<InFlight>,
    ) -> Result<Answer<B::Tokens>, ApiError> {
        let (app, common) = (&self.app, &self.common);
        check_logit_bias(common, model)?;
        let seed = common.seed.unwrap_or_else(|| fastrand::u64(..));
        let text = &model.text;
        let stop_tokens = match common.ignore_eos {
            true => Arc::default(),
            false => text.defaults.stop_tokens.clone(),
        };
        let mut choices = Vec::with_capacity(prompts.len() * common.n as usize);
        let mut prompt_tokens = 0;
        for prepared in prompts {
            let prompt = &prepared.prompt;
            prompt_tokens += prompt.len() as u32;
            let room = model.context_tokens - prompt.len() as u32;
            let wanted = common.max_tokens.unwrap_or(app.limits.request.max_tokens_default);
            for _ in 0..common.n {
                let seed = prepare::seed_of_choice(seed, choices.len());
                let tokens = app.backend.generate(Job {
                    model: model.id.clone(),
                    trace: self.trace.0.clone(),
                    prompt: prompt.clone(),
                    sampling: prepare::sampling(common, &text.defaults, seed),
                    max_new: wanted.min(room),
                    stop_tokens: stop_tokens.clone(),
                    logprobs: common.logprobs,
                    embed: None,
                    priority: self.priority,
                    keep_alive: common.keep_alive,
                    tenant: self.tenant,
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
        let id = random_id(match self.shape {
            Shape::Chat => "chatcmpl-",
            Shape::Text => "cmpl-",
        });
        let head = Head::new(
            self.shape,
            id,
            model.id.as_str(),
            unix_seconds(),
            common.include_usage,
            text.tokenizer.clone(),
        );
        let n = common.n as usize;
        let trace = self.trace.0.clone();
        Ok(Answer::new(head, trace, model.id.clone(), choices, prompt_tokens, n, place.take()))
    }
}

/// Waits for the whole answer.
async fn whole<T: Tokens>(mut answer: Answer<T>) -> Result<HttpResponse, ApiError> {
    let body = answer.collect().await?;
    let mut response = HttpResponse::Ok();
    put_queue_wait(&mut response, answer.queue_wait());
    put_model(&mut response, Some(answer.model.as_str()));
    Ok(response.content_type("application/json").body(body))
}

/// A response of server-sent events. `wait` is how long its sequences waited for their turn,
/// `model` who answers, where that is known already.
pub(crate) fn event_stream(
    wait: Option<Duration>,
    model: Option<&str>,
    body: impl MessageBody + 'static,
) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    put_queue_wait(&mut response, wait);
    put_model(&mut response, model);
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
fn keep_of(request: &HttpRequest) -> Result<Option<Keep>, ApiError> {
    const NAME: &str = "x-resumable";
    let Some(value) = request.headers().get(NAME) else { return Ok(None) };
    match value.to_str().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "true" => Ok(Some(Keep::Paused)),
        "background" => Ok(Some(Keep::GoingOn)),
        "false" => Ok(None),
        _ => Err(ApiError::field(NAME, "'x-resumable' must be true, background or false")),
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

/// Left out for a folder's path that a header cannot hold.
fn put_model(response: &mut HttpResponseBuilder, model: Option<&str>) {
    if let Some(value) = model.and_then(|model| HeaderValue::from_str(model).ok()) {
        response.insert_header((MODEL_HEADER, value));
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
