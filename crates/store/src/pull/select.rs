//! Which of a repository's files a model needs. Pure.
//!
//! Weights in safetensors, configuration, tokenizer, templates, licence and card. Never pickles,
//! never programs: what is not asked for cannot be run.

use super::PullError;
use std::collections::BTreeSet;

/// The index of weights that lie in more than one file.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// How files end that hold weights in another format.
pub(crate) const OTHER_FORMATS: [&str; 7] =
    [".gguf", ".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack"];

/// Files without a telling ending.
const TOKENIZER_FILES: [&str; 6] = [
    "tokenizer.model",
    "merges.txt",
    "vocab.txt",
    "tiktoken.model",
    "spiece.model",
    "sentencepiece.bpe.model",
];

/// Chooses from the repository's file names; `indexed` are the weight files that its index names.
pub(crate) fn needed(
    repository: &str,
    files: &[String],
    indexed: Option<&BTreeSet<String>>,
) -> Result<Vec<String>, PullError> {
    let weights = weights(files, indexed);
    if weights.is_empty() {
        return Err(PullError::NoWeights {
            repository: repository.to_owned(),
            found: found_instead(files),
        });
    }
    let mut chosen: Vec<String> = files.iter().filter(|file| is_text(file)).cloned().collect();
    chosen.extend(weights);
    chosen.sort();
    chosen.dedup();
    Ok(chosen)
}

/// The weight files: those of the index, else the model's one file, else every one that is not a
/// second copy in its authors' own format.
fn weights(files: &[String], indexed: Option<&BTreeSet<String>>) -> Vec<String> {
    let is_weight = |file: &&String| file.ends_with(".safetensors") && !file.contains('/');
    let extra = files.iter().filter(|file| is_sentence_layer(file)).cloned();
    let own: Vec<String> = match indexed {
        Some(indexed) => files.iter().filter(|file| indexed.contains(*file)).cloned().collect(),
        None if files.iter().any(|file| file == "model.safetensors") => {
            vec!["model.safetensors".to_owned()]
        }
        None => {
            let is_model = |file: &&String| is_weight(file) && !file.starts_with("consolidated");
            files.iter().filter(is_model).cloned().collect()
        }
    };
    if own.is_empty() { own } else { own.into_iter().chain(extra).collect() }
}

/// A layer that a sentence-transformers model has behind its encoder, as `2_Dense/…`.
fn is_sentence_layer(file: &str) -> bool {
    layer_file(file).is_some_and(|name| name.ends_with(".safetensors"))
}

/// The file name inside such a layer's folder.
fn layer_file(file: &str) -> Option<&str> {
    let (folder, name) = file.split_once('/')?;
    let is_layer = folder.starts_with(|c: char| c.is_ascii_digit()) && folder.contains('_');
    (is_layer && !name.contains('/')).then_some(name)
}

fn is_text(file: &str) -> bool {
    if let Some(name) = layer_file(file) {
        return name == "config.json";
    }
    if let Some(("additional_chat_templates", name)) = file.split_once('/') {
        return name.ends_with(".jinja") && !name.contains('/');
    }
    let lower = file.to_lowercase();
    !file.contains('/')
        && (lower.ends_with(".json")
            || lower.ends_with(".jinja")
            || lower.ends_with(".tiktoken")
            || TOKENIZER_FILES.contains(&file)
            || file == "README.md"
            || lower.starts_with("license")
            || lower.starts_with("licence"))
}

/// Other formats of weights, for the message.
fn found_instead(files: &[String]) -> String {
    let found: Vec<&str> = OTHER_FORMATS
        .into_iter()
        .filter(|format| files.iter().any(|file| file.ends_with(format)))
        .collect();
    if found.is_empty() {
        return format!("{} other files", files.len());
    }
    format!("only {}", found.join(" and "))
}

/// Whether a name from the hub may become a path below a snapshot.
pub(crate) fn is_safe(file: &str) -> bool {
    !file.is_empty()
        && file.len() <= 512
        && !file.contains(['\\', ':'])
        && !file.chars().any(char::is_control)
        && file.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str], indexed: Option<&[&str]>) -> Result<Vec<String>, PullError> {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        let indexed = indexed.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        needed("org/name", &files, indexed.as_ref())
    }

    #[test]
    fn pickles_and_programs_stay_away() {
        let files = [
            ".gitattributes",
            "LICENSE",
            "README.md",
            "config.json",
            "generation_config.json",
            "merges.txt",
            "model.safetensors",
            "modeling_x.py",
            "pytorch_model.bin",
            "consolidated.00.pth",
            "onnx/model.onnx",
            "original/params.json",
            "tokenizer.json",
            "tokenizer.model",
            "chat_template.jinja",
            "additional_chat_templates/tool_use.jinja",
            "1_Pooling/config.json",
            "2_Dense/model.safetensors",
            "2_Dense/pytorch_model.bin",
        ];
        let chosen = chosen(&files, None).unwrap();
        let left: Vec<&str> =
            files.into_iter().filter(|file| !chosen.iter().any(|kept| kept == file)).collect();
        assert_eq!(
            left,
            [
                ".gitattributes",
                "modeling_x.py",
                "pytorch_model.bin",
                "consolidated.00.pth",
                "onnx/model.onnx",
                "original/params.json",
                "2_Dense/pytorch_model.bin",
            ]
        );
    }

    #[test]
    fn weights_are_taken_once() {
        let sharded =
            ["config.json", "consolidated.safetensors", "m-1.safetensors", "m-2.safetensors"];
        assert_eq!(
            chosen(&sharded, Some(&["m-1.safetensors", "m-2.safetensors"])).unwrap(),
            ["config.json", "m-1.safetensors", "m-2.safetensors"]
        );
        assert_eq!(chosen(&sharded, None).unwrap().len(), 3);
        let both = ["model.safetensors", "model.fp32.safetensors"];
        assert_eq!(chosen(&both, None).unwrap(), ["model.safetensors"]);
    }

    #[test]
    fn without_safetensors_it_says_what_there_is() {
        let error = chosen(&["config.json", "m.gguf", "pytorch_model.bin"], None).unwrap_err();
        assert!(error.to_string().contains("only .gguf and .bin"), "{error}");
        assert!(chosen(&["notes.json"], None).unwrap_err().to_string().contains("mlx-community"));
    }

    #[test]
    fn a_file_name_cannot_leave_its_folder() {
        for safe in ["config.json", "1_Pooling/config.json", "a b.json"] {
            assert!(is_safe(safe), "{safe}");
        }
        for odd in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a\\b", "C:x", "a\nb"] {
            assert!(!is_safe(odd), "{odd:?}");
        }
    }
}
