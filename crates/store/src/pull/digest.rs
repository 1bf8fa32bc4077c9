//! What a hub's ETag says of a file's content.
//!
//! Large files have the SHA-256 of their bytes; small ones, kept in git, have git's blob id: the
//! SHA-1 of `blob <length>\0` and the bytes. A mirror may say something else: then only the length
//! can be checked.

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A running checksum of the kind that an ETag has.
#[derive(Debug, Clone)]
pub(crate) enum Checksum {
    Sha256(Sha256),
    GitBlob(Sha1),
    LengthOnly,
}

impl Checksum {
    /// For a file of `length` bytes with this ETag.
    pub(crate) fn for_etag(etag: &str, length: u64) -> Self {
        let is_hex = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        match (is_hex, etag.len()) {
            (true, 64) => Self::Sha256(Sha256::new()),
            (true, 40) => {
                let mut hash = Sha1::new();
                hash.update(format!("blob {length}\0"));
                Self::GitBlob(hash)
            }
            _ => Self::LengthOnly,
        }
    }

    /// Takes more of the file.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::GitBlob(hash) => hash.update(bytes),
            Self::LengthOnly => {}
        }
    }

    /// Whether the whole file is the one with this ETag; the error says what it is instead.
    pub(crate) fn agrees(self, etag: &str) -> Result<(), String> {
        let (kind, got) = match self {
            Self::Sha256(hash) => ("SHA-256", hex(&hash.finalize())),
            Self::GitBlob(hash) => ("git blob id", hex(&hash.finalize())),
            Self::LengthOnly => return Ok(()),
        };
        if got.eq_ignore_ascii_case(etag) {
            return Ok(());
        }
        Err(format!("its {kind} is {got}, the hub announced {etag}"))
    }
}

/// An ETag as it stands in a header, without the marks around it; `None` when it cannot name a
/// file in the cache.
pub(crate) fn plain_etag(header: &str) -> Option<String> {
    let etag = header.trim().trim_start_matches("W/").trim_matches('"');
    let is_name = (1..=128).contains(&etag.len())
        && !etag.starts_with('.')
        && etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    is_name.then(|| etag.to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(etag: &str, bytes: &[u8]) -> Result<(), String> {
        let mut checksum = Checksum::for_etag(etag, bytes.len() as u64);
        for piece in bytes.chunks(3) {
            checksum.update(piece);
        }
        checksum.agrees(etag)
    }

    #[test]
    fn both_kinds_of_etag_are_checked() {
        // `printf abc | sha256sum`, and `printf 'hello\n' | git hash-object --stdin`.
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(checked(sha, b"abc"), Ok(()));
        assert!(checked(sha, b"abd").unwrap_err().contains("SHA-256"));
        let blob = "ce013625030ba8dba906f756967f9e9ca394464a";
        assert_eq!(checked(blob, b"hello\n"), Ok(()));
        assert!(checked(blob, b"hello ").unwrap_err().contains("git blob id"));
        assert_eq!(checked("some-mirrors-own", b"anything"), Ok(()));
    }

    #[test]
    fn an_etag_that_is_no_file_name_is_none() {
        assert_eq!(plain_etag("\"abc\"").as_deref(), Some("abc"));
        assert_eq!(plain_etag("W/\"a-1.2\"").as_deref(), Some("a-1.2"));
        for odd in ["", "\"\"", "\"../x\"", "\"a/b\"", "\"a b\"", "\"..\""] {
            assert_eq!(plain_etag(odd), None, "{odd}");
        }
    }
}
