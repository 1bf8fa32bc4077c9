//! Models on disk: pull, list, show, remove.

use super::{AdminAnswer, Refused};
use crate::app::App;
use crate::backend::Backend;
use actix_web::HttpResponse;
use actix_web::web::{self, Data, Json, Query};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mlxd_protocol::admin::{
    AdminErrorBody, ModelCall, ModelShow, PullCall, PullCancelCall, PullStatus, RemoveCall,
    Removed, Shelf,
};
use std::convert::Infallible;

/// A pull as it goes on; the last status is its end. Dropping it does not end the pull.
pub type PullFeed = BoxStream<'static, PullStatus>;

/// Models on disk, and how they come and go.
pub trait ModelShelf: Send + Sync + 'static {
    /// Begins a pull, or joins the one of this model that is under way.
    ///
    /// # Errors
    /// When it cannot even begin.
    fn pull(&self, call: PullCall) -> Result<PullFeed, AdminErrorBody>;

    /// Calls a pull off.
    fn cancel_pull(&self, call: PullCancelCall) -> AdminAnswer<PullStatus>;

    /// Every model on disk.
    fn shelf(&self) -> AdminAnswer<Shelf>;

    /// One model on disk.
    fn show(&self, model: String) -> AdminAnswer<ModelShow>;

    /// Deletes a model from disk.
    fn remove(&self, call: RemoveCall) -> AdminAnswer<Removed>;
}

/// Puts the routes into an application.
pub(super) fn routes<B: Backend>(config: &mut web::ServiceConfig) {
    config
        .route("/admin/v1/pull", web::post().to(pull::<B>))
        .route("/admin/v1/pull/cancel", web::post().to(cancel::<B>))
        .route("/admin/v1/models", crate::routes::get().to(models::<B>))
        .route("/admin/v1/show", crate::routes::get().to(show::<B>))
        .route("/admin/v1/remove", web::post().to(remove::<B>));
}

async fn pull<B: Backend>(
    app: Data<App<B>>,
    call: Json<PullCall>,
) -> Result<HttpResponse, Refused> {
    let shutdown = app.shutdown.clone();
    let feed = app.front.pull(call.into_inner())?;
    let lines = feed.take_until(shutdown.cancelled_owned()).map(|status| {
        let mut line = serde_json::to_vec(&status).expect("a status has string keys");
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    Ok(HttpResponse::Ok().content_type("application/x-ndjson").streaming(lines))
}

async fn cancel<B: Backend>(
    app: Data<App<B>>,
    call: Json<PullCancelCall>,
) -> Result<Json<PullStatus>, Refused> {
    Ok(Json(app.front.cancel_pull(call.into_inner()).await?))
}

async fn models<B: Backend>(app: Data<App<B>>) -> Result<Json<Shelf>, Refused> {
    Ok(Json(app.front.shelf().await?))
}

async fn show<B: Backend>(
    app: Data<App<B>>,
    call: Query<ModelCall>,
) -> Result<Json<ModelShow>, Refused> {
    Ok(Json(app.front.show(call.into_inner().model).await?))
}

async fn remove<B: Backend>(
    app: Data<App<B>>,
    call: Json<RemoveCall>,
) -> Result<Json<Removed>, Refused> {
    Ok(Json(app.front.remove(call.into_inner()).await?))
}
