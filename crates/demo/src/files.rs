//! The files as they are shipped. They lie in the program's read-only pages and cost no memory
//! until they are written out.

/// One file of the model's folder.
#[derive(Debug, Clone, Copy)]
pub struct File {
    /// Its name in the folder.
    pub name: &'static str,
    /// What is in it.
    pub bytes: &'static [u8],
}

macro_rules! shipped {
    ($($name:literal),+ $(,)?) => {
        &[$(File { name: $name, bytes: include_bytes!(concat!("../model/", $name)) }),+]
    };
}

/// Every file a loader needs, in the order in which they are written and fingerprinted.
pub const FILES: &[File] = shipped![
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "model.safetensors",
];

/// [`fingerprint`] of [`FILES`] in 16 hexadecimal digits, written when the model was exported.
/// A folder that says the same holds the same model.
pub const REVISION: &str = include_str!("../model/revision").trim_ascii();

/// 64-bit FNV-1a over the files one after the other. It tells versions apart; it is no seal.
pub fn fingerprint(files: &[File]) -> u64 {
    let mut mark = 0xcbf2_9ce4_8422_2325;
    for byte in files.iter().flat_map(|file| file.bytes) {
        mark = (mark ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mark
}
