//! The admin's routes, on the Unix socket alone. Types and calls are `mlxd_protocol::admin`'s.

mod bench;
mod events;
mod front;
mod log;
mod memory;
mod route;
mod shelf;

pub use front::{AdminAnswer, FrontAdmin};
pub use shelf::{ModelShelf, PullFeed};

use crate::app::App;
use crate::backend::Backend;
use crate::routes::get;
use actix_web::body::BoxBody;
use actix_web::http::StatusCode;
use actix_web::web::{self, Data, Json, Query};
use actix_web::{HttpRequest, HttpResponse, ResponseError};
use mlxd_protocol::admin::{
    AdminError, AdminErrorBody, ModelCall, ModelStatus, Reread, SignalCall, Why,
};
use serde::Deserialize;

/// Bytes of a log when the call does not say.
const LOG_BYTES_DEFAULT: u64 = 1600;

/// Events when the call does not say.
const EVENTS_DEFAULT: usize = 20;

/// Puts the admin's routes into an application.
pub(crate) fn admin<B: Backend>(config: &mut web::ServiceConfig) {
    config
        .app_data(
            web::JsonConfig::default()
                .content_type_required(false)
                .error_handler(|error, _| Refused::bad_request(error.to_string()).into()),
        )
        .app_data(
            web::QueryConfig::default()
                .error_handler(|error, _| Refused::bad_request(error.to_string()).into()),
        )
        .route("/admin/v1/status", get().to(status::<B>))
        .route("/admin/v1/version", get().to(version::<B>))
        .route("/admin/v1/start", web::post().to(start::<B>))
        .route("/admin/v1/stop", web::post().to(stop::<B>))
        .route("/admin/v1/restart", web::post().to(restart::<B>))
        .route("/admin/v1/bench", web::post().to(bench::bench::<B>))
        .route("/admin/v1/signal", web::post().to(signal::<B>))
        .route("/admin/v1/log", get().to(log::<B>))
        .route("/admin/v1/events", get().to(events::<B>))
        .route("/admin/v1/route", web::post().to(route::route::<B>))
        .route("/admin/v1/why", get().to(why::<B>))
        .route("/admin/v1/reread", web::post().to(reread::<B>))
        .route("/admin/v1/update", web::post().to(update::<B>))
        .route("/admin/v1/shutdown", web::post().to(shutdown::<B>))
        .configure(memory::routes::<B>)
        .configure(shelf::routes::<B>);
}

/// An admin call that was refused.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message)]
struct Refused(AdminErrorBody);

impl Refused {
    fn bad_request(message: String) -> Self {
        Self(AdminErrorBody { code: "bad_request".into(), message })
    }
}

impl From<AdminErrorBody> for Refused {
    fn from(body: AdminErrorBody) -> Self {
        Self(body)
    }
}

impl ResponseError for Refused {
    fn status_code(&self) -> StatusCode {
        match self.0.code.as_str() {
            "bad_request" | "bad_config" => StatusCode::BAD_REQUEST,
            "unknown_model" | "no_log" | "not_pulling" => StatusCode::NOT_FOUND,
            "already_started" | "not_running" | "in_use" => StatusCode::CONFLICT,
            "shutting_down" | "memory_full" | "memory_pressure" => StatusCode::SERVICE_UNAVAILABLE,
            "insufficient_memory" => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn error_response(&self) -> HttpResponse<BoxBody> {
        HttpResponse::build(self.status_code()).json(AdminError { error: self.0.clone() })
    }
}

type Answer = Result<Json<ModelStatus>, Refused>;

async fn status<B: Backend>(app: Data<App<B>>) -> HttpResponse {
    HttpResponse::Ok().json(app.backend.status().await)
}

async fn version<B: Backend>(app: Data<App<B>>) -> HttpResponse {
    HttpResponse::Ok().json(app.backend.version())
}

async fn start<B: Backend>(app: Data<App<B>>, call: Json<ModelCall>) -> Answer {
    Ok(Json(app.backend.start(&call.model).await?))
}

async fn stop<B: Backend>(app: Data<App<B>>, call: Json<ModelCall>) -> Answer {
    Ok(Json(app.backend.stop(&call.model).await?))
}

async fn restart<B: Backend>(app: Data<App<B>>, call: Json<ModelCall>) -> Answer {
    Ok(Json(app.backend.restart(&call.model).await?))
}

async fn signal<B: Backend>(app: Data<App<B>>, call: Json<SignalCall>) -> Answer {
    Ok(Json(app.backend.signal(&call.model, call.signal).await?))
}

async fn reread<B: Backend>(app: Data<App<B>>) -> Result<Json<Reread>, Refused> {
    Ok(Json(app.front.reread().await?))
}

async fn update<B: Backend>(app: Data<App<B>>) -> Result<Json<Reread>, Refused> {
    Ok(Json(app.front.update().await?))
}

async fn why<B: Backend>(app: Data<App<B>>, call: Query<ModelCall>) -> Result<Json<Why>, Refused> {
    Ok(Json(app.front.why(call.into_inner().model).await?))
}

/// The query of a call for events.
#[derive(Debug, Deserialize)]
struct EventsCall {
    last: Option<usize>,
    #[serde(default)]
    follow: bool,
}

async fn events<B: Backend>(app: Data<App<B>>, call: Query<EventsCall>) -> HttpResponse {
    let follow = call.follow.then(|| app.shutdown.clone());
    let count = call.last.unwrap_or(EVENTS_DEFAULT);
    HttpResponse::Ok().content_type("application/x-ndjson").streaming(events::lines(
        app.backend.events(),
        count,
        follow,
    ))
}

/// The query of a log call; without a model it is about the front.
#[derive(Debug, Deserialize)]
struct LogCall {
    model: Option<String>,
    bytes: Option<u64>,
    #[serde(default)]
    follow: bool,
}

async fn log<B: Backend>(app: Data<App<B>>, call: Query<LogCall>) -> Result<HttpResponse, Refused> {
    let path = match &call.model {
        Some(model) => app.backend.log_file(model)?,
        None => app.front.main_log().ok_or_else(|| {
            Refused(AdminErrorBody {
                code: "no_log".into(),
                message: "mlxd writes no log file of its own; its lines are on its standard error"
                    .into(),
            })
        })?,
    };
    let bytes = call.bytes.unwrap_or(LOG_BYTES_DEFAULT).min(app.limits.log_bytes_max);
    let open = log::Tail::open(path.clone(), bytes).await;
    let tail = open.map_err(|error| {
        Refused(AdminErrorBody {
            code: "internal".into(),
            message: format!("{}: {error}", path.display()),
        })
    })?;
    let follow = call.follow.then(|| app.shutdown.clone());
    Ok(HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .streaming(tail.into_stream(follow)))
}

async fn shutdown<B: Backend>(app: Data<App<B>>, _request: HttpRequest) -> HttpResponse {
    tracing::info!("an admin asked for a shutdown");
    app.shutdown.cancel();
    HttpResponse::Ok().json(app.backend.version())
}
