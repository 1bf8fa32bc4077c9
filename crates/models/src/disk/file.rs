//! One block in one file: safetensors, with what it is and a checksum over all of it in the
//! header's metadata.
//!
//! A block's name is the hash of everything before it and in it, so that the file's own word for
//! what it is must equal the name it was asked by. The checksum covers the header, its own digits
//! read as zeros, and the data. Whatever is not exactly as [`encode`] writes it is no block.

use mlx_rs::Dtype;
use mlxd_protocol::TokenId;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Says what the file is, and in which order its parts lie.
const FORMAT: &str = "mlxd-prefix-1";
/// Bytes a header may have.
const HEADER_BYTES_MAX: usize = 1 << 20;
/// What stands for a checksum while it is computed.
const NO_SUM: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// A tensor as bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Plain {
    /// Of its elements.
    pub dtype: Dtype,
    /// Row-major.
    pub shape: Vec<i32>,
    /// Native order; the file's is little-endian, which is that of every machine MLX runs on.
    pub bytes: Vec<u8>,
}

/// A block's payload as bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// What the block is, in hexadecimal.
    pub name: String,
    /// The block's own tokens.
    pub tokens: Vec<TokenId>,
    /// What layers remember of them.
    pub parts: Vec<Plain>,
}

impl Saved {
    /// Bytes of data.
    pub fn data_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes.len()).sum::<usize>() + 4 * self.tokens.len()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tensor {
    dtype: String,
    shape: Vec<i32>,
    data_offsets: [usize; 2],
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, Tensor>,
}

fn dtype_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::Float32 => Some("F32"),
        Dtype::Float16 => Some("F16"),
        Dtype::Bfloat16 => Some("BF16"),
        Dtype::Uint32 => Some("U32"),
        Dtype::Uint8 => Some("U8"),
        _ => None,
    }
}

fn dtype_of(name: &str) -> Option<Dtype> {
    [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16, Dtype::Uint32, Dtype::Uint8]
        .into_iter()
        .find(|dtype| dtype_name(*dtype) == Some(name))
}

/// The file's bytes; `None` for a type that the format has not got.
pub fn encode(saved: &Saved) -> Option<Vec<u8>> {
    let mut header = format!(
        r#"{{"__metadata__":{{"format":"{FORMAT}","name":"{}","sha256":"{NO_SUM}"}}"#,
        saved.name
    );
    let mut at = 0;
    let mut describe = |name: &str, dtype: Dtype, shape: &[i32], bytes: usize| {
        let dtype = dtype_name(dtype)?;
        let end = at + bytes;
        write!(
            header,
            r#","{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{at},{end}]}}"#
        )
        .ok()?;
        at = end;
        Some(())
    };
    describe("tokens", Dtype::Uint32, &[saved.tokens.len() as i32], 4 * saved.tokens.len())?;
    for (number, part) in saved.parts.iter().enumerate() {
        describe(&part_name(number), part.dtype, &part.shape, part.bytes.len())?;
    }
    header.push('}');
    while !(header.len() + 8).is_multiple_of(8) {
        header.push(' ');
    }
    let mut file = Vec::with_capacity(8 + header.len() + saved.data_bytes());
    file.extend((header.len() as u64).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(saved.tokens.iter().flat_map(|token| token.to_le_bytes()));
    for part in &saved.parts {
        file.extend(&part.bytes);
    }
    let sum = hex(&Sha256::digest(&file));
    let at = sum_at(&header)? + 8;
    file[at..at + sum.len()].copy_from_slice(sum.as_bytes());
    Some(file)
}

/// What [`encode`] wrote.
///
/// # Errors
/// In words, what is wrong with it.
pub fn decode(mut file: Vec<u8>) -> Result<Saved, String> {
    let wrong = |what: &str| what.to_owned();
    let length = file.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    let length = length.and_then(|length| usize::try_from(length).ok());
    let length = length.filter(|length| *length <= HEADER_BYTES_MAX && *length + 8 <= file.len());
    let length = length.ok_or_else(|| wrong("its header's length is wrong"))?;
    let header = std::str::from_utf8(&file[8..8 + length]);
    let header = header.map_err(|_| wrong("its header is no text"))?;
    let parsed: Header = serde_json::from_str(header).map_err(|error| error.to_string())?;
    let said = |key: &str| parsed.metadata.get(key).map(String::as_str).unwrap_or_default();
    if said("format") != FORMAT {
        return Err(wrong("it is of another format"));
    }
    let (name, sum) = (said("name").to_owned(), said("sha256").to_owned());
    let at = sum_at(header).filter(|_| sum.len() == NO_SUM.len());
    let at = 8 + at.ok_or_else(|| wrong("it has no checksum"))?;
    file[at..at + NO_SUM.len()].copy_from_slice(NO_SUM.as_bytes());
    if hex(&Sha256::digest(&file)) != sum {
        return Err(wrong("its checksum does not match"));
    }
    let data = &file[8 + length..];
    let mut from = 0;
    let mut take = |name: &str| -> Result<Plain, String> {
        let tensor = parsed.tensors.get(name).ok_or_else(|| format!("it has no {name}"))?;
        let [start, end] = tensor.data_offsets;
        let dtype = dtype_of(&tensor.dtype).filter(|_| start == from && end >= start);
        let bytes = data.get(start..end);
        let (Some(dtype), Some(bytes)) = (dtype, bytes) else {
            return Err(format!("its {name} is misplaced"));
        };
        from = end;
        Ok(Plain { dtype, shape: tensor.shape.clone(), bytes: bytes.to_vec() })
    };
    let tokens = take("tokens")?;
    let count = parsed.tensors.len() - 1;
    let parts = (0..count).map(|number| take(&part_name(number))).collect::<Result<_, _>>()?;
    if from != data.len() {
        return Err(wrong("it is longer or shorter than its header says"));
    }
    let tokens = tokens.bytes.as_chunks::<4>().0;
    let tokens = tokens.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    Ok(Saved { name, tokens, parts })
}

fn part_name(number: usize) -> String {
    format!("part.{number}")
}

/// Where a header's checksum begins.
fn sum_at(header: &str) -> Option<usize> {
    const KEY: &str = r#""sha256":""#;
    let at = header.find(KEY)? + KEY.len();
    header.get(at..at + NO_SUM.len())?;
    Some(at)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn saved() -> Saved {
        let bytes = (0..96).collect();
        let part = Plain { dtype: Dtype::Float32, shape: vec![2, 3, 4], bytes };
        let other = Plain { dtype: Dtype::Bfloat16, shape: vec![2], bytes: vec![1, 2, 3, 4] };
        Saved { name: "ab".repeat(32), tokens: vec![1, 70_000], parts: vec![part, other] }
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(decode(encode(&saved()).unwrap()), Ok(saved()));
    }

    #[test]
    fn other_readers_of_safetensors_can_read_it() {
        let file = encode(&saved()).unwrap();
        let read = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read.names().len(), 3);
        assert_eq!(read.tensor("part.0").unwrap().shape(), [2, 3, 4]);
        assert_eq!(read.tensor("part.1").unwrap().dtype(), safetensors::Dtype::BF16);
    }

    #[test]
    fn no_changed_byte_goes_unnoticed() {
        let file = encode(&saved()).unwrap();
        for at in 0..file.len() {
            for flip in [1, 0x20, 0x80] {
                let mut changed = file.clone();
                changed[at] ^= flip;
                assert!(decode(changed).is_err(), "byte {at} with {flip:#x}");
            }
        }
        for length in 0..file.len() {
            assert!(decode(file[..length].to_vec()).is_err(), "the first {length} bytes");
        }
        assert!(decode([&file[..], &[0]].concat()).is_err());
    }
}
