//! How the front is: `/health`, `/ready`, `/metrics` and `/`.

use crate::app::App;
use crate::backend::Backend;
use actix_web::HttpResponse;
use actix_web::web::Data;
use serde_json::json;

/// 200 as long as the front lives, whatever its workers do.
pub(crate) async fn health<B: Backend>(app: Data<App<B>>) -> HttpResponse {
    HttpResponse::Ok().json(json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": app.started_at.elapsed().as_secs(),
    }))
}

/// 200 if a request sent now would be taken, else 503; with the reason.
pub(crate) async fn ready<B: Backend>(app: Data<App<B>>) -> HttpResponse {
    let readiness = app.backend.readiness();
    let (mut response, status) = match readiness.ready {
        true => (HttpResponse::Ok(), "ready"),
        false => (HttpResponse::ServiceUnavailable(), "not ready"),
    };
    response.json(json!({"status": status, "reason": readiness.reason}))
}

/// Prometheus's text format, in its OpenMetrics edition.
pub(crate) async fn metrics<B: Backend>(app: Data<App<B>>) -> HttpResponse {
    app.metrics.note_segments(app.preparer.segment_figures());
    let text = app.metrics.encode_after(app.backend.encode_metrics().await);
    HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .body(text)
}

/// A line for whoever looks.
pub(crate) async fn hello<B: Backend>(app: Data<App<B>>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(format!(
        "mlxd {} serves the OpenAI API at {}\n",
        env!("CARGO_PKG_VERSION"),
        app.base_url
    ))
}
