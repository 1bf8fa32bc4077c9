//! What workers keep for prompts that begin as earlier ones did: shown and dropped.

use super::{Dispatch, Slot, locked};
use mlxd_protocol::Cleared;
use mlxd_protocol::admin::{AdminErrorBody, CacheReport, CacheStatus, DiskCacheStatus, ModelCache};
use mlxd_ring::Kept;
use mlxd_supervisor::WorkerSpec;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// As a worker's progress page says.
pub(super) fn status(kept: &Kept) -> CacheStatus {
    let disk = DiskCacheStatus {
        bytes: kept.disk_bytes,
        bytes_max: kept.disk_bytes_max,
        blocks: kept.disk_blocks,
        reads: kept.disk_reads,
        written_bytes: kept.disk_written_bytes,
        damaged: kept.disk_damaged,
    };
    CacheStatus {
        bytes: kept.bytes,
        bytes_max: kept.bytes_max,
        blocks: kept.blocks,
        lookups: kept.lookups,
        hits: kept.hits,
        tokens_saved: kept.tokens,
        evictions: kept.evictions,
        disk: (disk.bytes_max > 0).then_some(disk),
    }
}

/// Where a worker keeps prefixes on the disk.
pub(super) fn folder(worker: &WorkerSpec) -> Option<PathBuf> {
    worker.load.prefix_disk.as_ref().map(|disk| disk.folder.clone())
}

impl Dispatch {
    /// What is kept for one model, or for every one that was asked for.
    ///
    /// # Errors
    /// `unknown_model`, `load_failed`.
    pub async fn cache(&self, model: Option<&str>) -> Result<CacheReport, AdminErrorBody> {
        let slots = self.slots_of(model).await?;
        let now = |slot: &Arc<Slot>| ModelCache {
            name: slot.open.id.to_string(),
            cache: kept_now(slot),
            cleared_bytes: None,
            cleared_disk_bytes: None,
        };
        Ok(CacheReport { models: slots.iter().map(now).collect() })
    }

    /// Drops what is kept for one model, or for every one that was asked for, in memory and on
    /// the disk; what running sequences began with stays in memory until they end.
    ///
    /// # Errors
    /// `unknown_model`, `load_failed`.
    pub async fn clear_cache(&self, model: Option<&str>) -> Result<CacheReport, AdminErrorBody> {
        let mut models = Vec::new();
        for slot in self.slots_of(model).await? {
            let cleared = match slot.worker.clear_cache().await {
                Some(cleared) => cleared,
                None => Cleared { bytes: 0, disk_bytes: clear_files(&slot).await },
            };
            models.push(ModelCache {
                name: slot.open.id.to_string(),
                cache: kept_now(&slot),
                cleared_bytes: Some(cleared.bytes),
                cleared_disk_bytes: Some(cleared.disk_bytes),
            });
        }
        Ok(CacheReport { models })
    }

    async fn slots_of(&self, model: Option<&str>) -> Result<Vec<Arc<Slot>>, AdminErrorBody> {
        match model {
            Some(name) => Ok(vec![self.slot(name).await?]),
            None => Ok(locked(&self.0.slots).values().cloned().collect()),
        }
    }
}

fn kept_now(slot: &Slot) -> Option<CacheStatus> {
    let view = slot.worker.view();
    view.progress().filter(|_| view.info.is_some()).map(|page| status(&page.kept))
}

/// Removes the files of a model that has no worker; gives their bytes.
async fn clear_files(slot: &Slot) -> u64 {
    let Some(folder) = slot.prefix_folder.clone() else {
        return 0;
    };
    tokio::task::spawn_blocking(move || remove_files(&folder)).await.unwrap_or(0)
}

fn remove_files(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0; // Nothing was ever kept.
    };
    let removed = entries.flatten().map(|entry| {
        let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
        std::fs::remove_file(entry.path()).map_or(0, |()| bytes)
    });
    removed.sum()
}
