//! How a text's vector is made of its tokens' hidden states, as the model's authors say in the
//! files of sentence-transformers: `modules.json` and the pooling module's `config.json`.

use std::path::Path;

use mlx_rs::error::Result;
use mlx_rs::ops::indexing::take_along_axis;
use mlx_rs::ops::{maximum, sqrt};
use mlx_rs::{Array, Dtype};
use serde_json::Value;

use crate::fault::{Loaded, corrupt, missing, unsupported};
use crate::sys;

/// The longest of these files that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Which hidden states make the vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Their mean.
    Mean,
    /// The first token's.
    First,
    /// The last token's.
    Last,
}

/// How a vector is made of hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pooling {
    /// Of which.
    pub taken: Taken,
    /// Brought to length 1.
    pub normalised: bool,
}

impl Pooling {
    /// What the files in `folder` say; `None` if there are none. With `unsaid`, the pooling
    /// module's own file may be missing: conversions leave out folders.
    pub fn read(folder: &Path, unsaid: Option<Taken>) -> Loaded<Option<Self>> {
        let Some(modules) = read_json(&folder.join("modules.json"))? else {
            return Ok(None);
        };
        let modules =
            modules.as_array().ok_or_else(|| corrupt("modules.json does not hold a list"))?;
        let (mut taken, mut normalised) = (None, false);
        for module in modules {
            let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
            match text("type").rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Normalize" => normalised = true,
                "Pooling" => taken = Some(Taken::of_module(folder, text("path"), unsaid)?),
                other => {
                    return Err(unsupported(format!(
                        "modules.json names the module {other:?}; this build knows Transformer, Pooling and Normalize"
                    )));
                }
            }
        }
        Ok(taken.map(|taken| Self { taken, normalised }))
    }

    /// Vectors, `[rows, width]`, float32, of `hidden`, `[rows, n, width]`, of which
    /// each row has `lengths` tokens.
    pub fn apply(self, hidden: &Array, lengths: &[i32]) -> Result<Array> {
        let (rows, longest, full) = (hidden.dim(0), hidden.dim(1), hidden.dim(2));
        let counts = Array::from_slice(lengths, &[rows, 1, 1]);
        let pooled = match self.taken {
            Taken::First => sys::slice(hidden, &[0, 0, 0], &[rows, 1, full])?,
            Taken::Last => {
                let last = counts.subtract(Array::from_int(1))?;
                take_along_axis(hidden, &last, 1)?
            }
            Taken::Mean => {
                let positions = Array::arange::<i32, i32>(0, longest, None)?;
                let real = positions.reshape(&[1, longest, 1])?.lt(&counts)?;
                let hidden = hidden.as_dtype(Dtype::Float32)?;
                let sum = hidden.multiply(real.as_dtype(Dtype::Float32)?)?.sum_axis(1, true)?;
                sum.divide(counts.as_dtype(Dtype::Float32)?)?
            }
        };
        let pooled = pooled.as_dtype(Dtype::Float32)?.reshape(&[rows, full])?;
        if !self.normalised {
            return Ok(pooled);
        }
        let length = sqrt(pooled.square()?.sum_axis(-1, true)?)?;
        pooled.divide(maximum(length, Array::from_f32(1e-12))?)
    }
}

impl Taken {
    fn of_module(folder: &Path, path: &str, unsaid: Option<Self>) -> Loaded<Self> {
        if Path::new(path).file_name() != Some(path.as_ref()) {
            return Err(corrupt(format!(
                "modules.json has the path {path:?}, which is not the plain name of a folder"
            )));
        }
        let name = format!("{path}/config.json");
        match (read_json(&folder.join(path).join("config.json"))?, unsaid) {
            (Some(config), _) => Self::of_config(&name, &config),
            (None, Some(unsaid)) => Ok(unsaid),
            (None, None) => Err(missing(format!("{name} is missing, and modules.json names it"))),
        }
    }

    fn of_config(name: &str, config: &Value) -> Loaded<Self> {
        let keys = config.as_object().ok_or_else(|| corrupt(format!("{name} is no object")))?;
        // Newer files name the mode; older ones have a flag for each.
        let named = keys.get("pooling_mode").and_then(Value::as_str).map(str::to_owned);
        let flagged = keys
            .iter()
            .filter(|(_, value)| value.as_bool() == Some(true))
            .filter_map(|(key, _)| key.strip_prefix("pooling_mode_").map(str::to_owned));
        let modes: Vec<String> = match named {
            Some(named) => vec![named],
            None => flagged.collect(),
        };
        match modes.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["mean" | "mean_tokens"] => Ok(Self::Mean),
            ["cls" | "cls_token"] => Ok(Self::First),
            ["lasttoken"] => Ok(Self::Last),
            other => Err(unsupported(format!(
                "{name} pools by {other:?}; this build knows mean_tokens, cls_token and lasttoken, one at a time"
            ))),
        }
    }
}

fn read_json(path: &Path) -> Loaded<Option<Value>> {
    let shown = path.display();
    let Ok(found) = std::fs::metadata(path) else {
        return Ok(None);
    };
    if found.len() > FILE_BYTES_MAX {
        return Err(corrupt(format!(
            "{shown} has {} bytes; at most {FILE_BYTES_MAX} are read",
            found.len()
        )));
    }
    let text = std::fs::read(path).map_err(|error| missing(format!("{shown}: {error}")))?;
    serde_json::from_slice(&text).map(Some).map_err(|error| corrupt(format!("{shown}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn modules(types: &[(&str, &str)]) -> Value {
        let entry = |(index, (kind, path)): (usize, &(&str, &str))| json!({"idx": index, "path": path, "type": format!("sentence_transformers.models.{kind}")});
        json!(types.iter().enumerate().map(entry).collect::<Vec<_>>())
    }

    fn read(modules: &Value, pooling: &Value) -> Loaded<Option<Pooling>> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("modules.json"), modules.to_string()).unwrap();
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        std::fs::write(folder.path().join("1_Pooling/config.json"), pooling.to_string()).unwrap();
        Pooling::read(folder.path(), None)
    }

    #[test]
    fn every_way_of_saying_it_is_read() {
        let usual = modules(&[("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2")]);
        for (config, wanted) in [
            (
                json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}),
                Taken::Mean,
            ),
            (json!({"pooling_mode_cls_token": true, "include_prompt": true}), Taken::First),
            (json!({"pooling_mode_lasttoken": true}), Taken::Last),
            (json!({"pooling_mode": "cls"}), Taken::First),
        ] {
            let wanted = Pooling { taken: wanted, normalised: true };
            assert_eq!(read(&usual, &config).unwrap(), Some(wanted), "{config}");
        }
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(Pooling::read(empty.path(), None).unwrap(), None);
        // What a conversion leaves of a decoder's files, and authors who do not normalise.
        let bare = modules(&[("Transformer", ""), ("Pooling", "1_Pooling")]);
        std::fs::write(empty.path().join("modules.json"), bare.to_string()).unwrap();
        let wanted = Pooling { taken: Taken::Last, normalised: false };
        assert_eq!(Pooling::read(empty.path(), Some(Taken::Last)).unwrap(), Some(wanted));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let usual = modules(&[("Pooling", "1_Pooling")]);
        let mean = json!({"pooling_mode_mean_tokens": true});
        for (modules, config, word) in [
            (usual.clone(), json!({"pooling_mode_max_tokens": true}), "max_tokens"),
            (
                usual.clone(),
                json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}),
                "mean_tokens",
            ),
            (usual, json!([1]), "1_Pooling/config.json"),
            (modules(&[("Dense", "2_Dense")]), mean.clone(), "Dense"),
            (modules(&[("Pooling", "../1_Pooling")]), mean.clone(), "../1_Pooling"),
            (modules(&[("Pooling", "3_Pooling")]), mean.clone(), "3_Pooling"),
            (json!({}), mean, "modules.json"),
        ] {
            let fault = read(&modules, &config).unwrap_err();
            assert!(fault.message.contains(word), "{word}: {}", fault.message);
        }
    }
}
