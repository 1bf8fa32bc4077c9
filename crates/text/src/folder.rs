//! Reads the small text files of a model folder, each within a size limit.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::Value;

use crate::error::TextError;

/// Largest JSON or template file beside the tokenizer, in bytes.
pub(crate) const SIDE_FILE_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// The file's text, or `None` when there is no such file.
pub(crate) fn read_text(path: &Path, bytes_max: u64) -> Result<Option<String>, TextError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refuse(path, error)),
    };
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|error| refuse(path, error))?;
    if bytes.len() as u64 > bytes_max {
        return Err(refuse(path, format!("is larger than {bytes_max} bytes")));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(refuse(path, "is not UTF-8 text")),
    }
}

/// The file as a JSON object, or `None` when there is no such file.
pub(crate) fn read_object(path: &Path) -> Result<Option<Value>, TextError> {
    let Some(text) = read_text(path, SIDE_FILE_BYTES_MAX)? else {
        return Ok(None);
    };
    let value: Value = serde_json::from_str(&text)
        .map_err(|error| refuse(path, format!("is not valid JSON: {error}")))?;
    if !value.is_object() {
        return Err(refuse(path, "holds no JSON object"));
    }
    Ok(Some(value))
}

/// An error about this file.
pub(crate) fn refuse(path: &Path, reason: impl ToString) -> TextError {
    TextError::File { path: path.to_owned(), reason: reason.to_string() }
}
