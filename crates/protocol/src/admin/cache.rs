//! What workers keep for prompts that begin as earlier ones did: the answers of `GET` and
//! `DELETE /v1/cache`, which take `?model=M`.

use serde::{Deserialize, Serialize};

/// Every model's, or one's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheReport {
    /// In name order.
    pub models: Vec<ModelCache>,
}

/// One model's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelCache {
    /// The model's name.
    pub name: String,
    /// `None` while it is not loaded.
    pub cache: Option<CacheStatus>,
    /// After a clearing: bytes of memory that were given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared_bytes: Option<u64>,
    /// After a clearing: bytes of files that were removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared_disk_bytes: Option<u64>,
}

/// What one worker keeps; counts are since it was loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// Bytes held in memory.
    pub bytes: u64,
    /// Bytes that may be held; 0 where nothing is kept.
    pub bytes_max: u64,
    /// Blocks held.
    pub blocks: u64,
    /// Prompts looked up.
    pub lookups: u64,
    /// Those of which a part was there.
    pub hits: u64,
    /// Prompt tokens that were there, and so were not computed.
    pub tokens_saved: u64,
    /// Blocks dropped to make room.
    pub evictions: u64,
    /// What is kept on the disk; `None` where nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskCacheStatus>,
}

/// What one worker keeps on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCacheStatus {
    /// Bytes of files.
    pub bytes: u64,
    /// Bytes that files may have.
    pub bytes_max: u64,
    /// Files, one for each block.
    pub blocks: u64,
    /// Blocks read from files.
    pub reads: u64,
    /// Bytes written to files.
    pub written_bytes: u64,
    /// Files thrown away because they were not what their names say.
    pub damaged: u64,
}
