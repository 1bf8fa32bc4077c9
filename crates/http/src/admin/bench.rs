//! A direct run of a model's engine, with the prompt that a chat request would have.

use super::Refused;
use crate::app::App;
use crate::backend::Backend;
use actix_web::web::{Data, Json};
use mlxd_dispatch::{ModelFault, OpenModel};
use mlxd_protocol::BenchSpec;
use mlxd_protocol::admin::{BenchAnswer, BenchCall};
use mlxd_text::{RenderInput, TextError};
use serde_json::json;

/// Renders, encodes, runs.
pub(super) async fn bench<B: Backend>(
    call: Json<BenchCall>,
    app: Data<App<B>>,
) -> Result<Json<BenchAnswer>, Refused> {
    let call = call.into_inner();
    let model = app.backend.open_model(&call.model).await;
    let model = model.map_err(|fault: ModelFault| Refused(fault.into()))?;
    let prompt = prompt(&model, &call.question).map_err(|e| Refused::bad_request(e.to_string()))?;
    let room = (model.context_tokens as usize).saturating_sub(prompt.len());
    if call.new_tokens as usize > room || call.new_tokens == 0 || call.runs == 0 {
        return Err(Refused::bad_request(format!(
            "runs must be 1 or more and new_tokens 1 to {room}, which is what the context leaves"
        )));
    }
    let prompt_tokens = prompt.len() as u32;
    let spec = BenchSpec {
        prompt,
        new_tokens: call.new_tokens,
        warmup_runs: call.warmup_runs,
        runs: call.runs,
    };
    let leg = app.backend.bench(&call.model, spec).await?;
    let models = app.backend.status().await.models;
    let status = models.into_iter().find(|status| status.name == model.id.as_str());
    let status = status.ok_or_else(|| Refused::bad_request(format!("{} is gone", model.id)))?;
    Ok(Json(BenchAnswer { prompt_tokens, leg, status }))
}

fn prompt(model: &OpenModel, question: &str) -> Result<Vec<u32>, TextError> {
    let Some(template) = &model.text.template else {
        return model.text.tokenizer.encode(question, true);
    };
    let messages = [json!({"role": "user", "content": question})];
    let text = template.render(&RenderInput {
        messages: &messages,
        add_generation_prompt: true,
        ..RenderInput::default()
    })?;
    model.text.tokenizer.encode(&text, false)
}
