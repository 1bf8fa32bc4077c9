//! `POST /v1/embeddings`.

use crate::app::{App, parse};
use crate::backend::{Backend, Tokens};
use crate::body;
use crate::error::ApiError;
use crate::openai::completion::Prompt;
use crate::openai::embeddings::{ValidEmbeddings, answer};
use crate::prepare;
use crate::routes::submit::{deadline_of, priority_of, put_queue_wait, trace_of};
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use mlxd_dispatch::{EmbedJob, End, Failure, Job, OpenModel};
use mlxd_protocol::Sampling;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Turns texts into vectors.
pub(crate) async fn embed<B: Backend>(
    request: HttpRequest,
    payload: Payload,
    app: Data<App<B>>,
) -> Result<HttpResponse, ApiError> {
    let bytes = body::read(&request, payload, &app.limits, &app.metrics).await?;
    let size = bytes.len();
    let mut asked = parse(&app, bytes, ValidEmbeddings::parse).await?;
    let _place = app.start_answer()?;
    let model = app.backend.open_model(&asked.model).await?;
    check_model(&model, asked.dimensions)?;
    let (inputs, of) = (std::mem::take(&mut asked.inputs), model.clone());
    let tokens_max = app.limits.request.prompt_tokens_max;
    let encode = move || {
        let one = |(name, input): (String, Prompt)| prepare::text(&of, input, &name, tokens_max);
        inputs.into_iter().map(one).collect::<Result<VecDeque<_>, _>>()
    };
    let texts = app.preparer.prepare(size, encode).await?;
    let prompt_tokens = texts.iter().map(|text| text.len() as u64).sum();
    let deadline = match asked.deadline {
        Some(deadline) => Some(deadline),
        None => deadline_of(&request)?,
    };
    let job = Job {
        model: model.id.clone(),
        trace: trace_of(&request).0,
        prompt: Arc::default(),
        sampling: Sampling::default(),
        max_new: 0,
        stop_tokens: Arc::default(),
        logprobs: None,
        embed: Some(EmbedJob { dimensions: asked.dimensions }),
        priority: priority_of(&request),
        tenant: app.tenants.of(request.headers()),
        deadline,
        keep_alive: asked.keep_alive,
    };
    let mut volley = Volley::new(texts, job, app.limits.request.embedding_inputs_open_max);
    let outcome = poll_fn(|cx| volley.poll(cx, &app.backend)).await;
    outcome.map_err(|error| {
        error.come_back_after(|| app.retry_after_s(app.backend.retry_after(&model.id)))
    })?;
    let mut response = HttpResponse::Ok();
    put_queue_wait(&mut response, volley.queue_wait);
    let body = answer(model.id.as_str(), &volley.vectors, prompt_tokens, asked.encoding)?;
    Ok(response.content_type("application/json").body(body))
}

fn check_model(model: &OpenModel, dimensions: Option<u32>) -> Result<(), ApiError> {
    let Some(width) = model.vector_width else {
        return Err(ApiError::Invalid {
            param: Some("model".to_owned()),
            code: Some("not_an_embedding_model"),
            message: format!(
                "{} writes text and makes no embeddings; choose an embedding model, such as one \
                 of BERT's kind or a Qwen3-Embedding",
                model.id
            ),
        });
    };
    match dimensions {
        Some(wanted) if wanted > width => Err(ApiError::field(
            "dimensions",
            format!("'dimensions' is {wanted}; the vectors of {} have {width} numbers", model.id),
        )),
        _ => Ok(()),
    }
}

/// Texts of one request on their way through a worker: so many at once, the next as one ends.
struct Volley<T> {
    waiting: VecDeque<Arc<[u32]>>,
    open: Vec<(usize, T)>,
    open_max: usize,
    /// What all of them are asked with.
    job: Job,
    vectors: Vec<Arc<[f32]>>,
    queue_wait: Option<Duration>,
}

impl<T: Tokens> Volley<T> {
    fn new(waiting: VecDeque<Arc<[u32]>>, job: Job, open_max: usize) -> Self {
        let vectors = vec![Arc::default(); waiting.len()];
        Self { waiting, open: Vec::new(), open_max, job, vectors, queue_wait: None }
    }

    /// Ready when every text has its vector, or one cannot have any.
    fn poll<B: Backend<Tokens = T>>(
        &mut self,
        cx: &mut Context<'_>,
        backend: &B,
    ) -> Poll<Result<(), ApiError>> {
        loop {
            self.fill(backend)?;
            if self.open.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if !self.read(cx)? {
                return Poll::Pending;
            }
        }
    }

    /// Sends texts off. Where there is no room for more than those that are on their way, the
    /// others wait for these.
    fn fill<B: Backend<Tokens = T>>(&mut self, backend: &B) -> Result<(), Failure> {
        while self.open.len() < self.open_max {
            let Some(prompt) = self.waiting.front().cloned() else {
                return Ok(());
            };
            match backend.generate(Job { prompt, ..self.job.clone() }) {
                Ok(tokens) => {
                    let index = self.vectors.len() - self.waiting.len();
                    self.open.push((index, tokens));
                    self.waiting.pop_front();
                }
                Err(failure) if failure.code == "overloaded" && !self.open.is_empty() => {
                    return Ok(());
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// Takes in what has come; true if any text is done.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, ApiError> {
        let (mut done, mut entries) = (false, Vec::new());
        let mut at = 0;
        while let Some((index, tokens)) = self.open.get_mut(at) {
            let end = match tokens.poll_next(cx, &mut entries) {
                Poll::Ready(Some(end)) => end,
                Poll::Ready(None) => continue,
                Poll::Pending => {
                    at += 1;
                    continue;
                }
            };
            self.queue_wait = self.queue_wait.max(tokens.queue_wait());
            match end {
                End::Embedded(vector) => self.vectors[*index] = vector,
                end => return Err(without_vector(&end)),
            }
            self.open.swap_remove(at);
            done = true;
        }
        Ok(done)
    }
}

fn without_vector(end: &End) -> ApiError {
    match ApiError::from_end(end) {
        Some(ApiError::ContextLength { message, .. }) => {
            ApiError::ContextLength { param: "input", message }
        }
        Some(error) => error,
        None => ApiError::Internal { message: "the worker wrote tokens for a vector".to_owned() },
    }
}
