//! `mlxctl cache`: what is kept for prompts that begin as earlier ones did.

use crate::client::{Failure, Front, Patience};
use crate::exit::Exit;
use crate::output::{self, harmless};
use mlxd_protocol::admin::{CacheReport, CacheStatus, ModelCache};
use mlxd_protocol::bytes_in_short;

/// Shows it, or drops it and says how much that was.
pub(crate) async fn cache(
    front: &Front,
    model: Option<&str>,
    clear: bool,
    as_json: bool,
) -> Result<Exit, Failure> {
    let query: Vec<_> = model.map(|model| ("model", model)).into_iter().collect();
    let report: CacheReport = match clear {
        // The worker answers between two pieces of its work.
        true => front.delete("/v1/cache", &query, Patience::Slow).await?,
        false => front.get_about("/v1/cache", &query).await?,
    };
    match (as_json, clear) {
        (true, _) => output::json(&report)?,
        (false, true) => output::piece(&harmless(&cleared(&report)))?,
        (false, false) => output::piece(&harmless(&table(&report)))?,
    }
    Ok(Exit::Success)
}

const NOTHING: &str = "no model was asked for yet\n";

fn table(report: &CacheReport) -> String {
    if report.models.is_empty() {
        return NOTHING.to_owned();
    }
    report.models.iter().map(lines).collect()
}

fn lines(model: &ModelCache) -> String {
    let name = &model.name;
    let Some(cache) = &model.cache else {
        return format!("{name}: not loaded\n");
    };
    let CacheStatus { bytes, bytes_max, blocks, lookups, hits, tokens_saved, evictions, disk } =
        cache;
    if *bytes_max == 0 {
        return format!("{name}: keeps nothing (prefix_cache_bytes_max is 0, or deterministic)\n");
    }
    let size = bytes_in_short;
    let mut text = format!(
        "{name}\n  memory  {} of {} in {blocks} blocks, {evictions} dropped for others\n  \
         hits    {hits} of {lookups} prompts, {tokens_saved} tokens saved\n",
        size(*bytes),
        size(*bytes_max),
    );
    if let Some(disk) = disk {
        text += &format!(
            "  disk    {} of {} in {} files, {} read, {} written, {} damaged\n",
            size(disk.bytes),
            size(disk.bytes_max),
            disk.blocks,
            disk.reads,
            size(disk.written_bytes),
            disk.damaged,
        );
    }
    text
}

fn cleared(report: &CacheReport) -> String {
    if report.models.is_empty() {
        return NOTHING.to_owned();
    }
    let line = |model: &ModelCache| {
        let memory = bytes_in_short(model.cleared_bytes.unwrap_or(0));
        let disk = bytes_in_short(model.cleared_disk_bytes.unwrap_or(0));
        format!("{}: dropped {memory} in memory and {disk} on the disk\n", model.name)
    };
    report.models.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlxd_protocol::admin::DiskCacheStatus;

    fn model(cache: Option<CacheStatus>) -> ModelCache {
        let (cleared_bytes, cleared_disk_bytes) = (Some(1_500_000), Some(0));
        ModelCache { name: "org/m".into(), cache, cleared_bytes, cleared_disk_bytes }
    }

    #[test]
    fn what_is_kept_is_shown() {
        let cache = CacheStatus {
            bytes: 1_500_000,
            bytes_max: 1_000_000_000,
            blocks: 12,
            lookups: 9,
            hits: 7,
            tokens_saved: 812,
            evictions: 3,
            disk: None,
        };
        let disk = DiskCacheStatus {
            bytes: 2_000_000,
            bytes_max: 8_000_000_000,
            blocks: 20,
            reads: 4,
            written_bytes: 0,
            damaged: 1,
        };
        let both = CacheStatus { disk: Some(disk), ..cache.clone() };
        let models = vec![model(Some(both)), model(None), model(Some(CacheStatus::default()))];
        let report = CacheReport { models };
        assert_eq!(
            table(&report),
            "org/m\n  memory  1.50 MB of 1.00 GB in 12 blocks, 3 dropped for others\n  hits    7 of 9 \
             prompts, 812 tokens saved\n  disk    2.00 MB of 8.00 GB in 20 files, 4 read, 0 B written, \
             1 damaged\norg/m: not loaded\norg/m: keeps nothing (prefix_cache_bytes_max is 0, or \
             deterministic)\n"
        );
        let report = CacheReport { models: vec![model(Some(cache))] };
        assert_eq!(cleared(&report), "org/m: dropped 1.50 MB in memory and 0 B on the disk\n");
        assert_eq!(table(&CacheReport { models: Vec::new() }), NOTHING);
    }
}
