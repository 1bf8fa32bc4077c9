//! The OpenAI routes and those that say how the front is.

mod cache;
mod chat;
mod completions;
mod embeddings;
mod health;
mod models;
mod streams;
mod submit;

pub(crate) use submit::{MODEL_HEADER, priority_of};

use crate::backend::Backend;
use crate::error::ApiError;
use actix_web::{HttpRequest, HttpResponse, Resource, Route, guard, web};

/// Puts every route of the API into an application.
pub(crate) fn api<B: Backend>(config: &mut web::ServiceConfig) {
    config
        .app_data(web::PathConfig::default().error_handler(|_, request| no_route(request).into()))
        .service(resource("/v1/chat/completions", "POST", web::post().to(chat::chat::<B>)))
        .service(resource("/v1/completions", "POST", web::post().to(completions::complete::<B>)))
        .service(resource("/v1/embeddings", "POST", web::post().to(embeddings::embed::<B>)))
        .service(resource("/v1/models", GET, get().to(models::list::<B>)))
        .service(resource("/v1/models/{id:.*}", GET, get().to(models::one::<B>)))
        .service(
            resource("/v1/cache", "GET, HEAD, DELETE", get().to(cache::show::<B>))
                .route(web::delete().to(cache::clear::<B>)),
        )
        .service(
            resource("/v1/streams/{id:.*}", "GET, DELETE", web::get().to(streams::read_on::<B>))
                .route(web::delete().to(streams::end::<B>)),
        )
        .service(resource("/health", GET, get().to(health::health::<B>)))
        .service(resource("/ready", GET, get().to(health::ready::<B>)))
        .service(resource("/metrics", GET, get().to(health::metrics::<B>)))
        .service(resource("/", GET, get().to(health::hello::<B>)));
}

const GET: &str = "GET, HEAD";

/// A route for GET, and for HEAD, whose body is left out on the way.
pub(crate) fn get() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

/// One path with one route; other methods get 405 in the API's shape.
pub(crate) fn resource(path: &str, allowed: &'static str, route: Route) -> Resource {
    let refuse = move |request: HttpRequest| async move {
        Err::<HttpResponse, _>(ApiError::Method {
            method: request.method().to_string(),
            path: request.path().to_owned(),
            allowed,
        })
    };
    web::resource(path).route(route).default_service(web::to(refuse))
}

/// Whatever no route takes.
pub(crate) async fn nothing_here(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    Err(no_route(&request))
}

fn no_route(request: &HttpRequest) -> ApiError {
    ApiError::NoRoute { method: request.method().to_string(), path: request.path().to_owned() }
}
