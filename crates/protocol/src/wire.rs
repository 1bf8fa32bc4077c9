//! The bytes of ring records.

use crate::{Command, Report, TokenRecord};

/// Frame kinds of both rings.
pub mod kind {
    /// Commands ring: a bincode [`Command`](crate::Command).
    pub const COMMAND: u16 = 1;
    /// Tokens ring: packed [`TokenRecord`](crate::TokenRecord)s of one step.
    pub const TOKENS: u16 = 2;
    /// Tokens ring: a bincode [`Report`](crate::Report).
    pub const REPORT: u16 = 3;
}

/// A record that is not what its kind says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// bincode refused it, or bytes were left over.
    #[error("a {what} record of {bytes} bytes does not decode: {reason}")]
    Malformed {
        /// Which record.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// What the decoder said.
        reason: String,
    },
}

/// The most bytes a decoded record may ask to allocate.
const DECODE_BYTES_MAX: usize = 64 << 20;

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<DECODE_BYTES_MAX>()
}

fn decode<T: bincode::Decode<()>>(bytes: &[u8], what: &'static str) -> Result<T, WireError> {
    let malformed = |reason: String| WireError::Malformed { what, bytes: bytes.len(), reason };
    let (value, used) = bincode::decode_from_slice(bytes, config())
        .map_err(|error| malformed(error.to_string()))?;
    if used != bytes.len() {
        return Err(malformed(format!("{} bytes left over", bytes.len() - used)));
    }
    Ok(value)
}

fn encode<T: bincode::Encode>(value: &T, out: &mut Vec<u8>) {
    out.clear();
    bincode::encode_into_std_write(value, out, config()).expect("writing to a Vec cannot fail");
}

impl Command {
    /// Writes the record over `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        encode(self, out);
    }

    /// Reads a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        decode(bytes, "command")
    }
}

impl Report {
    /// Writes the record over `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        encode(self, out);
    }

    /// Reads a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        decode(bytes, "report")
    }
}

impl TokenRecord {
    /// A frame's bytes.
    pub fn as_bytes(records: &[Self]) -> &[u8] {
        bytemuck::cast_slice(records)
    }

    /// The records of a frame, copied out whatever its alignment.
    pub fn read_all(bytes: &[u8]) -> Result<impl Iterator<Item = Self> + '_, WireError> {
        const SIZE: usize = size_of::<TokenRecord>();
        if !bytes.len().is_multiple_of(SIZE) {
            return Err(WireError::Malformed {
                what: "token",
                bytes: bytes.len(),
                reason: format!("not a multiple of {SIZE}"),
            });
        }
        Ok(bytes.chunks_exact(SIZE).map(bytemuck::pod_read_unaligned))
    }
}

#[cfg(test)]
mod tests {
    use crate::*;

    #[test]
    fn records_come_back_as_they_went() {
        let submit = Command::Submit(Submit {
            request: RequestId(7),
            trace: "req-1".into(),
            tokens: vec![1, 2, 70_000],
            prompt_len: 2,
            max_new: 9,
            stop_tokens: vec![2],
            sampling: Sampling { logit_bias: vec![(3, -1.5)], ..Sampling::default() },
            logprobs: Some(3),
            priority: Priority::High,
            tenant: 4,
            weight: 2,
            deadline_ms: Some(9_000),
        });
        let mut bytes = Vec::new();
        submit.encode_into(&mut bytes);
        assert_eq!(Command::decode(&bytes).unwrap(), submit);
        bytes.push(0);
        assert!(Command::decode(&bytes).is_err(), "left-over bytes are refused");

        let records = [TokenRecord {
            request: 1,
            index: 2,
            token: 3,
            flags: TokenFlags::STOP,
            logprob: -0.5,
        }; 3];
        let mut shifted = vec![0u8];
        shifted.extend_from_slice(TokenRecord::as_bytes(&records));
        let back: Vec<_> = TokenRecord::read_all(&shifted[1..]).unwrap().collect();
        assert_eq!(back, records);
        assert!(TokenRecord::read_all(&shifted).is_err());
    }

    #[test]
    fn texts_and_vectors_come_back_as_they_went() {
        let embed = Command::Embed(Embed {
            request: RequestId(9),
            trace: "req-2".into(),
            tokens: vec![5, 6],
            dimensions: Some(2),
            priority: Priority::Low,
        });
        let mut bytes = Vec::new();
        embed.encode_into(&mut bytes);
        assert_eq!(Command::decode(&bytes).unwrap(), embed);
        let embedded =
            Report::Embedded(Embedded { request: RequestId(9), values: vec![0.6, -0.8] });
        embedded.encode_into(&mut bytes);
        assert_eq!(Report::decode(&bytes).unwrap(), embedded);
    }

    #[test]
    fn a_lying_length_does_not_allocate() {
        // A report whose vector claims 2^60 entries.
        let mut bytes = vec![1, 5, 0];
        bytes.extend_from_slice(&[253, 0, 0, 0, 0, 0, 0, 0, 16]);
        assert!(Report::decode(&bytes).is_err());
    }
}
