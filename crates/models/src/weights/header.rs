//! Safetensors headers, read and checked before MLX sees the file.
//!
//! The format: eight little-endian bytes with the header's length, the header as a JSON object
//! (name → dtype, shape, data_offsets; `__metadata__` aside), then the tensors' bytes without
//! overlap or hole. <https://huggingface.co/docs/safetensors>. MLX trusts what it reads there,
//! so everything it relies on is checked here.

use std::collections::HashMap;
use std::fmt;

use mlx_rs::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

/// The longest header accepted; the reference implementation has the same limit.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Dimensions of a tensor at the most.
const DIMENSIONS_MAX: usize = 8;

/// Where a tensor lies and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Type of one element.
    pub dtype: Dtype,
    /// Sizes, each fitting MLX's.
    pub shape: Vec<i32>,
    /// Bytes of data.
    pub bytes: u64,
}

/// What is wrong with a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The file ends before its header does.
    #[error("it ends inside its header: {got} bytes of at least {wanted}")]
    Short {
        /// Bytes there.
        got: u64,
        /// Bytes needed.
        wanted: u64,
    },
    /// The header's length is not believable.
    #[error("its header claims {claimed} bytes; at most {HEADER_BYTES_MAX} are accepted")]
    Huge {
        /// What the length says.
        claimed: u64,
    },
    /// Not the JSON that the format wants.
    #[error("its header does not parse: {reason}")]
    Malformed {
        /// What the parser said.
        reason: String,
    },
    /// One tensor's entry cannot be true.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// Which.
        name: String,
        /// Why.
        reason: String,
    },
}

/// The tensors of one file by name.
pub type Tensors = HashMap<String, TensorEntry>;

/// Reads the length at the start of a file of `file_bytes` bytes.
pub fn header_length(prefix: [u8; 8], file_bytes: u64) -> Result<u64, HeaderError> {
    let claimed = u64::from_le_bytes(prefix);
    if claimed > HEADER_BYTES_MAX {
        return Err(HeaderError::Huge { claimed });
    }
    if file_bytes < 8 + claimed {
        return Err(HeaderError::Short { got: file_bytes, wanted: 8 + claimed });
    }
    Ok(claimed)
}

/// Checks a header's JSON against the `data_bytes` bytes that follow it.
pub fn parse_header(json: &[u8], data_bytes: u64) -> Result<Tensors, HeaderError> {
    let Entries(entries) = serde_json::from_slice(json)
        .map_err(|error| HeaderError::Malformed { reason: error.to_string() })?;
    let mut tensors = HashMap::with_capacity(entries.len());
    let mut spans = Vec::with_capacity(entries.len());
    for (name, raw) in entries {
        let entry = check(&raw, data_bytes)
            .map_err(|reason| HeaderError::Tensor { name: name.clone(), reason })?;
        spans.push((raw.data_offsets, name.clone()));
        if tensors.insert(name.clone(), entry).is_some() {
            let reason = "it is named twice".to_owned();
            return Err(HeaderError::Tensor { name, reason });
        }
    }
    check_spans(spans, data_bytes)?;
    Ok(tensors)
}

fn check(raw: &RawEntry, data_bytes: u64) -> Result<TensorEntry, String> {
    let dtype = dtype(&raw.dtype).ok_or_else(|| format!("unknown dtype {:?}", raw.dtype))?;
    let (begin, end) = raw.data_offsets;
    if begin > end || end > data_bytes {
        return Err(format!(
            "its data lies at {begin}..{end}, but the file has {data_bytes} bytes of data (is it truncated?)"
        ));
    }
    if raw.shape.len() > DIMENSIONS_MAX {
        return Err(format!("it has {} dimensions", raw.shape.len()));
    }
    let mut elements: u64 = 1;
    let mut shape = Vec::with_capacity(raw.shape.len());
    for &size in &raw.shape {
        let fits = i32::try_from(size).ok();
        let product = elements.checked_mul(size);
        match (fits, product) {
            (Some(fits), Some(product)) => {
                shape.push(fits);
                elements = product;
            }
            _ => return Err(format!("its shape {:?} is too large", raw.shape)),
        }
    }
    let bytes = elements.checked_mul(element_bytes(dtype));
    if bytes != Some(end - begin) {
        return Err(format!(
            "{} of shape {:?} does not fill its {} bytes",
            raw.dtype,
            raw.shape,
            end - begin
        ));
    }
    Ok(TensorEntry { dtype, shape, bytes: end - begin })
}

/// No two tensors share a byte, and every byte belongs to one.
fn check_spans(mut spans: Vec<((u64, u64), String)>, data_bytes: u64) -> Result<(), HeaderError> {
    spans.sort();
    let mut covered = 0;
    for ((begin, end), name) in spans {
        if begin != covered {
            let what = if begin < covered {
                "overlaps the tensor before it"
            } else {
                "leaves a hole before it"
            };
            let reason = format!("its data at {begin}..{end} {what}, which ends at {covered}");
            return Err(HeaderError::Tensor { name, reason });
        }
        covered = end;
    }
    if covered != data_bytes {
        let reason = format!("{} bytes after the last tensor belong to none", data_bytes - covered);
        return Err(HeaderError::Malformed { reason });
    }
    Ok(())
}

fn dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "BOOL" => Dtype::Bool,
        "U8" => Dtype::Uint8,
        "I8" => Dtype::Int8,
        "U16" => Dtype::Uint16,
        "I16" => Dtype::Int16,
        "U32" => Dtype::Uint32,
        "I32" => Dtype::Int32,
        "U64" => Dtype::Uint64,
        "I64" => Dtype::Int64,
        "F16" => Dtype::Float16,
        "BF16" => Dtype::Bfloat16,
        "F32" => Dtype::Float32,
        _ => return None,
    })
}

/// Bytes of one element.
pub fn element_bytes(dtype: Dtype) -> u64 {
    match dtype {
        Dtype::Bool | Dtype::Uint8 | Dtype::Int8 => 1,
        Dtype::Uint16 | Dtype::Int16 | Dtype::Float16 | Dtype::Bfloat16 => 2,
        Dtype::Uint32 | Dtype::Int32 | Dtype::Float32 => 4,
        Dtype::Uint64 | Dtype::Int64 | Dtype::Float64 | Dtype::Complex64 => 8,
    }
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A JSON object's pairs in order, names that come twice included.
struct Entries(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Vec<(String, RawEntry)>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        pairs.push((name, map.next_value()?));
                    }
                }
                Ok(pairs)
            }
        }
        deserializer.deserialize_map(Pairs).map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(json: &str, data_bytes: u64) -> Result<Tensors, HeaderError> {
        parse_header(json.as_bytes(), data_bytes)
    }

    #[test]
    fn a_true_header_is_read() {
        let json = r#"{"__metadata__":{"format":"mlx"},
            "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},
            "a":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}"#;
        let tensors = parse(json, 12).unwrap();
        assert_eq!(tensors["a"].shape, [1, 2]);
        assert_eq!(tensors["b"].dtype, Dtype::Float32);
        assert_eq!(tensors["b"].bytes, 8);
    }

    #[test]
    fn each_lie_is_named() {
        let one = |entry: &str| format!(r#"{{"w":{entry}}}"#);
        for (json, data, word) in [
            (one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,12]}"#), 12, "does not fill"),
            (one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#), 4, "truncated"),
            (one(r#"{"dtype":"F8","shape":[2],"data_offsets":[0,2]}"#), 2, "unknown dtype"),
            (one(r#"{"dtype":"F32","shape":[4294967296],"data_offsets":[0,0]}"#), 0, "too large"),
            (one(r#"{"dtype":"U8","shape":[2147483647,2147483647,2147483647],"data_offsets":[0,1]}"#), 1, "too large"),
            (one(r#"{"dtype":"F32","shape":[1],"data_offsets":[8,4]}"#), 8, "8..4"),
            (one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#), 8, "hole"),
            (one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#), 8, "belong to none"),
            (r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"v":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#.into(), 8, "overlaps"),
            (r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#.into(), 2, "twice"),
            ("[1]".into(), 0, "does not parse"),
        ] {
            let error = parse(&json, data).expect_err(&json).to_string();
            assert!(error.contains(word), "{json}: {error}");
        }
    }

    #[test]
    fn lengths_are_bounded_before_anything_is_read() {
        let huge = header_length(u64::MAX.to_le_bytes(), 16);
        assert_eq!(huge, Err(HeaderError::Huge { claimed: u64::MAX }));
        let short = header_length(100u64.to_le_bytes(), 16);
        assert_eq!(short, Err(HeaderError::Short { got: 16, wanted: 108 }));
        assert_eq!(header_length(8u64.to_le_bytes(), 16), Ok(8));
    }

    proptest! {
        /// Whatever the bytes, parsing ends with an answer, and an accepted header is coherent.
        #[test]
        fn mutated_headers_never_lie_unnoticed(
            position in 0usize..200, byte in any::<u8>(), data_bytes in 0u64..32,
        ) {
            let mut json = br#"{"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},"a":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}"#.to_vec();
            let position = position % json.len();
            json[position] = byte;
            if let Ok(tensors) = parse_header(&json, data_bytes) {
                let mut total = 0;
                for entry in tensors.values() {
                    let elements: u64 = entry.shape.iter().map(|&size| size as u64).product();
                    prop_assert_eq!(elements * element_bytes(entry.dtype), entry.bytes);
                    total += entry.bytes;
                }
                prop_assert_eq!(total, data_bytes);
            }
        }

        /// Noise is refused or read, never a panic.
        #[test]
        fn noise_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_header(&bytes, 64);
        }
    }
}
