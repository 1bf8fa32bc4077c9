//! Models on disk over the admin's socket.

use super::client::over_socket;
use super::fake::{FakeFront, Front};
use crate::admin::{AdminAnswer, ModelShelf, PullFeed};
use crate::limits::HttpLimits;
use futures_util::{StreamExt, stream};
use mlxd_protocol::admin::{
    AdminErrorBody, ModelShow, PullCall, PullCancelCall, PullStage, PullStatus, RemoveCall,
    Removed, Shelf,
};
use serde_json::{Value, json};

fn error<T>(code: &str, message: String) -> Result<T, AdminErrorBody> {
    Err(AdminErrorBody { code: code.into(), message })
}

fn status(model: &str, stage: PullStage) -> PullStatus {
    PullStatus {
        model: model.into(),
        stage,
        commit: None,
        files: Vec::new(),
        bytes_fetched: 0,
        retries: Vec::new(),
        elapsed_ms: 0,
        watchers: 1,
        folder: None,
        error: None,
    }
}

/// Knows one model to pull, one that never comes, and one that is in use.
impl ModelShelf for FakeFront {
    fn pull(&self, call: PullCall) -> Result<PullFeed, AdminErrorBody> {
        let stages = [PullStage::Asking, PullStage::Fetching, PullStage::Done];
        match call.model.as_str() {
            "org/new" => Ok(stream::iter(stages.map(|stage| status("org/new", stage))).boxed()),
            "org/slow" => Ok(stream::iter([status("org/slow", PullStage::Fetching)])
                .chain(stream::pending())
                .boxed()),
            odd => error("bad_request", format!("{odd} is no name")),
        }
    }

    fn cancel_pull(&self, call: PullCancelCall) -> AdminAnswer<PullStatus> {
        Box::pin(async move { error("not_pulling", format!("{} {}", call.model, call.force)) })
    }

    fn shelf(&self) -> AdminAnswer<Shelf> {
        Box::pin(async { Ok(Shelf::default()) })
    }

    fn show(&self, model: String) -> AdminAnswer<ModelShow> {
        Box::pin(async move { error("unknown_model", format!("no {model}")) })
    }

    fn remove(&self, call: RemoveCall) -> AdminAnswer<Removed> {
        Box::pin(async move {
            if !call.force {
                return error("in_use", format!("{} is loaded", call.model));
            }
            let stopped = vec![call.model.clone()];
            Ok(Removed { model: call.model, freed_bytes: 7, shared_bytes: 0, stopped })
        })
    }
}

#[actix_web::test]
async fn models_come_and_go_over_the_socket() {
    let front = Front::start(HttpLimits::default());
    let admin = async |method: &str, path: &str, body: Value| {
        over_socket(&front.socket, method, path, &body.to_string()).await
    };
    let pulled = admin("POST", "/admin/v1/pull", json!({"model": "org/new"})).await;
    let stages: Vec<Value> = pulled
        .body
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["stage"].clone())
        .collect();
    assert_eq!(
        (pulled.status, stages),
        (200, vec![json!("asking"), json!("fetching"), json!("done")])
    );
    assert_eq!(admin("POST", "/admin/v1/pull", json!({"model": "a b"})).await.status, 400);
    let cancel = json!({"model": "org/new", "force": true});
    let answer = admin("POST", "/admin/v1/pull/cancel", cancel).await;
    assert_eq!((answer.status, &answer.json()["error"]["message"]), (404, &json!("org/new true")));

    assert_eq!(admin("GET", "/admin/v1/models", json!(null)).await.json()["models"], json!([]));
    let shown = admin("GET", "/admin/v1/show?model=a%2Fb", json!(null)).await;
    assert_eq!((shown.status, &shown.json()["error"]["message"]), (404, &json!("no a/b")));
    let removed = admin("POST", "/admin/v1/remove", json!({"model": "m"})).await;
    assert_eq!((removed.status, &removed.json()["error"]["code"]), (409, &json!("in_use")));
    let removed = admin("POST", "/admin/v1/remove", json!({"model": "m", "force": true})).await;
    assert_eq!((removed.status, &removed.json()["freed_bytes"]), (200, &json!(7)));
    front.stop().await;
}

#[actix_web::test]
async fn a_pull_that_goes_on_does_not_hold_up_the_shutdown() {
    let front = Front::start(HttpLimits::default());
    let shutdown = front.shutdown.clone();
    let body = json!({"model": "org/slow"}).to_string();
    let (pulled, ()) =
        tokio::join!(over_socket(&front.socket, "POST", "/admin/v1/pull", &body), async {
            shutdown.cancel();
        });
    assert!(pulled.body.lines().count() <= 1);
    front.stop().await;
}
