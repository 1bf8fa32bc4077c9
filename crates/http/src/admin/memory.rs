//! Memory: who stays, what a model would need.

use super::{Answer, Refused};
use crate::app::App;
use crate::backend::Backend;
use actix_web::web::{self, Data, Json, Query};
use mlxd_protocol::admin::{Estimate, EstimateCall, ModelCall};

/// Puts the routes into an application.
pub(super) fn routes<B: Backend>(config: &mut web::ServiceConfig) {
    config
        .route("/admin/v1/pin", web::post().to(pin::<B>))
        .route("/admin/v1/unpin", web::post().to(unpin::<B>))
        .route("/admin/v1/estimate", crate::routes::get().to(estimate::<B>));
}

async fn pin<B: Backend>(app: Data<App<B>>, call: Json<ModelCall>) -> Answer {
    Ok(Json(app.backend.pin(&call.model, true).await?))
}

async fn unpin<B: Backend>(app: Data<App<B>>, call: Json<ModelCall>) -> Answer {
    Ok(Json(app.backend.pin(&call.model, false).await?))
}

async fn estimate<B: Backend>(
    app: Data<App<B>>,
    call: Query<EstimateCall>,
) -> Result<Json<Estimate>, Refused> {
    Ok(Json(app.backend.estimate(call.into_inner()).await?))
}
