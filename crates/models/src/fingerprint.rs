//! What kept state depends on besides the tokens, for a cache that outlives the process.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;
use std::time::SystemTime;

use mlxd_engine::prefix::{BlockHash, CacheKey};
use mlxd_protocol::ModelInfo;
use sha2::{Digest, Sha256};

/// Bytes of a safetensors header that are read at the most.
const HEADER_BYTES_MAX: u64 = 64 << 20;

/// Where the hash chains of the model in `folder` begin.
///
/// Weights are told apart by their files' names, sizes, times and headers, which hold every
/// tensor's name, shape and type: reading gigabytes at each start would cost more than it is
/// worth, and a file that was written anew has another time.
///
/// # Errors
/// A file cannot be read.
pub fn root(folder: &Path, info: &ModelInfo) -> io::Result<BlockHash> {
    let mut model = Sha256::new();
    let mut tokenizer = Sha256::new();
    let mut names: Vec<_> =
        fs::read_dir(folder)?.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    for name in names {
        let path = folder.join(&name);
        let name = name.to_string_lossy().into_owned();
        if name == "config.json" {
            part(&mut model, name.as_bytes());
            part(&mut model, &fs::read(&path)?);
        } else if name.ends_with(".safetensors") {
            part(&mut model, name.as_bytes());
            stamp(&mut model, &path)?;
            part(&mut model, &header(&path)?);
        } else if name.starts_with("tokenizer") {
            part(&mut tokenizer, name.as_bytes());
            part(&mut tokenizer, &fs::read(&path)?);
        }
    }
    let mut build = Sha256::new();
    part(&mut build, env!("CARGO_PKG_VERSION").as_bytes());
    stamp(&mut build, &std::env::current_exe()?)?;
    Ok(BlockHash::root(&CacheKey {
        model: &hex(model),
        tokenizer: &hex(tokenizer),
        quantization: &format!("{} {}", info.quantization, info.backend),
        build: &hex(build),
    }))
}

/// With its length, so that no two parts run together.
fn part(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// A file's size and time.
fn stamp(hash: &mut Sha256, path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    let age = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    part(hash, &metadata.len().to_le_bytes());
    part(hash, &age.as_nanos().to_le_bytes());
    Ok(())
}

fn header(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut header = Vec::new();
    file.take(u64::from_le_bytes(length).min(HEADER_BYTES_MAX)).read_to_end(&mut header)?;
    Ok(header)
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> ModelInfo {
        ModelInfo {
            architecture: "llama".into(),
            vocab_size: 1,
            context_tokens: 1,
            parameters: 1,
            weight_bytes: 1,
            kv_bytes_per_token: 1,
            quantization: "f32".into(),
            backend: "cpu".into(),
            mlx: None,
            load_ms: 0,
        }
    }

    #[test]
    fn whatever_changes_the_state_changes_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let write = |name: &str, bytes: &[u8]| fs::write(path.join(name), bytes).unwrap();
        write("config.json", b"{}");
        write("tokenizer.json", b"{}");
        write("model.safetensors", b"\x02\0\0\0\0\0\0\0{}1234");
        let first = root(path, &info()).unwrap();
        assert_eq!(root(path, &info()).unwrap(), first);
        write("README.md", b"other words");
        assert_eq!(root(path, &info()).unwrap(), first, "no part of the model");

        let mut seen = vec![first];
        let mut another = |info: &ModelInfo| {
            let root = root(path, info).unwrap();
            assert!(!seen.contains(&root));
            seen.push(root);
        };
        another(&ModelInfo { quantization: "4-bit g64".into(), ..info() });
        another(&ModelInfo { backend: "metal".into(), ..info() });
        write("tokenizer.json", b"{ }");
        another(&info());
        write("config.json", b"{ }");
        another(&info());
        let weights = File::options().append(true).open(path.join("model.safetensors")).unwrap();
        weights.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        another(&info());
        write("model-2.safetensors", b"\x02\0\0\0\0\0\0\0{}");
        another(&info());
    }
}
