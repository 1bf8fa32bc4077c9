//! `[models]`: where models are, how they run, and a table for each that differs.

use crate::section::section;
use crate::value::{Allowed, FullPath, ListOf, OneOf, Optional, Truth, Word, words};
use std::collections::BTreeMap;
use std::path::PathBuf;

words! {
    /// Where a model computes.
    pub enum Device {
        /// The GPU when there is one, else the CPU.
        Auto = "auto",
        /// The CPU.
        Cpu = "cpu",
        /// The GPU, or a load error.
        Gpu = "gpu",
    }
}

section! {
    /// Where models are and how they run unless their own table says otherwise.
    pub struct ModelsSection in "models" {
        /// The model of a request that names none. Left out: such a request gets 400.
        default: Option<String> = None, Optional(Word("a model's name"));
        /// The Hugging Face cache. Left out: `$HF_HUB_CACHE`, `$HF_HOME/hub` or
        /// `~/.cache/huggingface/hub`.
        hf_cache: Option<PathBuf> = None, Optional(FullPath);
        /// More folders whose subfolders are models: `<folder>/<name>` or `<folder>/<org>/<name>`.
        folders: Vec<PathBuf> = Vec::new(), ListOf { each: FullPath, max: 64 };
        /// Whether a request may name a model by the path of its folder.
        paths_allowed: bool = true, Truth;
        /// Tokens of a sequence, prompt and answer together. Left out: what the model's own
        /// `config.json` says.
        context_tokens_max: Option<u32> = None, Optional(16..=16_777_216);
        /// Tokens of a prompt run in one piece at the most; between pieces others decode.
        prefill_chunk_tokens: u32 = 1_024, 1..=65_536;
        /// The same while others decode, who wait for each piece.
        prefill_chunk_tokens_busy: u32 = 256, 1..=65_536;
        /// Sequences that one model computes at once.
        running_max: u32 = 8, 1..=1_024;
        /// Sequences that wait for one model; a further request gets 503.
        queued_max: u32 = 64, 0..=65_536;
        /// Begun sequences that more urgent ones may push out of their place; they keep their KV.
        parked_max: u32 = 4, 0..=1_024;
        /// Milliseconds of waiting that lift a sequence by one priority. 0: waiting lifts nobody.
        ageing_ms: u64 = 10_000, 0..=86_400_000;
        /// Bytes of KV kept, per model, for prompts that begin as earlier ones did. 0 keeps none.
        /// Left out: half of what the model's files take, but 64 MiB at least and 1 GiB at most.
        prefix_cache_bytes_max: Option<u64> = None, Optional(0..=1 << 50);
        /// Tokens guessed from the sequence itself and checked in one pass, at the most, while a
        /// sequence runs alone and that is measured faster. 0 never guesses.
        guesses_max: u32 = 8, 0..=64;
        /// Tokens that a draft model guesses and that are checked in one pass, at the most.
        draft_tokens_max: u32 = 4, 1..=64;
        /// Bits of one key or value in long sequences: 4 or 8. 0 keeps them as they are computed.
        kv_bits: u32 = 0, KvBits;
        /// Tokens from which on a sequence's keys and values are packed, with `kv_bits`. As in
        /// mlx-lm: short sequences gain little, and decode together only unpacked.
        kv_quantize_from_tokens: u32 = 5_000, 0..=16_777_216;
        /// Tokens whose keys and values a sequence keeps at the most: its first 4 and the last ones.
        /// 0 keeps all. Not with `kv_bits`.
        max_kv_tokens: u32 = 0, KvTokens;
        /// Bytes of it kept on the disk as well, per model. 0 keeps none there: what was written
        /// to a model, and what it answered, could be read out of these files.
        prefix_disk_bytes_max: u64 = 0, 0..=1 << 50;
        /// Bytes of it written to the disk in an hour at the most, per model.
        prefix_disk_write_bytes_per_hour_max: u64 = 8 << 30, 0..=1 << 50;
        /// `auto`, `cpu` or `gpu`.
        device: Device = Device::Auto, OneOf;
        /// Bytes of freed buffers that MLX keeps for reuse. Left out: MLX's own rule.
        cache_bytes_max: Option<u64> = None, Optional(0..=1 << 50);
        /// Idle so long, a model is unloaded. Left out: 600 from 64 GiB of memory on, 300 from 24
        /// GiB on, else 180.
        ttl_s: Option<u64> = None, Optional(0..=31_536_000);
        /// Whether models stay loaded: neither idleness nor another model's need unloads them.
        pinned: bool = false, Truth;
        /// An answer that another worker goes on with is, token by token, the one that would have
        /// been given anyway.
        deterministic: bool = false, Truth;
    }
}

section! {
    /// One `[models."name"]` table. What is left out is as in `[models]`.
    pub struct ModelTable in "models.\"name\"" {
        /// Its folder. Left out: the name is looked up like a name in a request.
        path: Option<PathBuf> = None, Optional(FullPath);
        /// Other names for it in requests.
        aliases: Vec<String> = Vec::new(), ListOf { each: Word("a name"), max: 64 };
        /// Groups it belongs to, for `mlxctl start GROUP:*` and its like.
        groups: Vec<String> = Vec::new(), ListOf { each: GroupName, max: 64 };
        /// Load it when the front starts.
        preload: bool = false, Truth;
        /// See `[models]`.
        context_tokens_max: Option<u32> = None, Optional(16..=16_777_216);
        /// See `[models]`.
        prefill_chunk_tokens: Option<u32> = None, Optional(1..=65_536);
        /// See `[models]`.
        prefill_chunk_tokens_busy: Option<u32> = None, Optional(1..=65_536);
        /// See `[models]`.
        running_max: Option<u32> = None, Optional(1..=1_024);
        /// See `[models]`.
        queued_max: Option<u32> = None, Optional(0..=65_536);
        /// See `[models]`.
        parked_max: Option<u32> = None, Optional(0..=1_024);
        /// See `[models]`.
        ageing_ms: Option<u64> = None, Optional(0..=86_400_000);
        /// See `[models]`.
        prefix_cache_bytes_max: Option<u64> = None, Optional(0..=1 << 50);
        /// See `[models]`.
        guesses_max: Option<u32> = None, Optional(0..=64);
        /// A small model with the same tokens that guesses for it, loaded beside it.
        draft_model: Option<String> = None, Optional(Word("a model's name"));
        /// See `[models]`.
        draft_tokens_max: Option<u32> = None, Optional(1..=64);
        /// See `[models]`.
        kv_bits: Option<u32> = None, Optional(KvBits);
        /// See `[models]`.
        kv_quantize_from_tokens: Option<u32> = None, Optional(0..=16_777_216);
        /// See `[models]`.
        max_kv_tokens: Option<u32> = None, Optional(KvTokens);
        /// See `[models]`.
        prefix_disk_bytes_max: Option<u64> = None, Optional(0..=1 << 50);
        /// See `[models]`.
        prefix_disk_write_bytes_per_hour_max: Option<u64> = None, Optional(0..=1 << 50);
        /// See `[models]`.
        device: Option<Device> = None, Optional(OneOf);
        /// See `[models]`.
        cache_bytes_max: Option<u64> = None, Optional(0..=1 << 50);
        /// See `[models]`.
        ttl_s: Option<u64> = None, Optional(0..=31_536_000);
        /// See `[models]`.
        pinned: Option<bool> = None, Optional(Truth);
        /// See `[models]`.
        deterministic: Option<bool> = None, Optional(Truth);
    }
}

/// What keys and values can be packed in.
struct KvBits;

impl Allowed<u32> for KvBits {
    fn must_be(&self) -> String {
        "0, 4 or 8".to_owned()
    }

    fn admits(&self, value: &u32) -> bool {
        matches!(value, 0 | 4 | 8)
    }
}

/// How many tokens' keys and values can be kept.
struct KvTokens;

impl Allowed<u32> for KvTokens {
    fn must_be(&self) -> String {
        "0, or 16 to 16777216".to_owned()
    }

    fn admits(&self, value: &u32) -> bool {
        matches!(value, 0 | 16..=16_777_216)
    }
}

/// A name without what `mlxctl` reads as something else.
struct GroupName;

impl Allowed<String> for GroupName {
    fn must_be(&self) -> String {
        "a group's name, of letters, digits, dots, dashes and underscores".to_owned()
    }

    fn admits(&self, value: &String) -> bool {
        (1..=64).contains(&value.len())
            && value.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    }
}

/// `[models]` and its tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelsConfig {
    /// What holds for all models.
    pub all: ModelsSection,
    /// The `[models."name"]` tables, by name.
    pub tables: BTreeMap<String, ModelTable>,
}

/// How one model runs: its table laid over `[models]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSettings {
    /// Tokens of a sequence; `None` is what the model says.
    pub context_tokens_max: Option<u32>,
    /// Tokens of a prompt run in one piece at the most.
    pub prefill_chunk_tokens: u32,
    /// The same while others decode.
    pub prefill_chunk_tokens_busy: u32,
    /// Sequences computed at once.
    pub running_max: u32,
    /// Sequences that wait.
    pub queued_max: u32,
    /// Begun sequences pushed out of their place.
    pub parked_max: u32,
    /// Milliseconds of waiting that lift by one priority.
    pub ageing_ms: u64,
    /// Bytes of KV kept for prompts that begin as earlier ones did.
    pub prefix_cache_bytes_max: Option<u64>,
    /// Tokens guessed and checked in one pass at the most.
    pub guesses_max: u32,
    /// A model that guesses for it.
    pub draft_model: Option<String>,
    /// Tokens that it guesses and that are checked in one pass at the most.
    pub draft_tokens_max: u32,
    /// Bits of one key or value in long sequences; 0 keeps them as they are computed.
    pub kv_bits: u32,
    /// Tokens from which on they are packed.
    pub kv_quantize_from_tokens: u32,
    /// Tokens whose keys and values a sequence keeps; 0 keeps all.
    pub max_kv_tokens: u32,
    /// Bytes of it kept on the disk as well.
    pub prefix_disk_bytes_max: u64,
    /// Bytes of it written to the disk in an hour.
    pub prefix_disk_write_bytes_per_hour_max: u64,
    /// Where it computes.
    pub device: Device,
    /// Bytes MLX may keep in its buffer cache; `None` leaves MLX's rule.
    pub cache_bytes_max: Option<u64>,
    /// Idle so long, it is unloaded; `None` is by the machine's size.
    pub ttl_s: Option<u64>,
    /// Whether it stays loaded.
    pub pinned: bool,
    /// Whether going on after a death gives the very same tokens.
    pub deterministic: bool,
}

impl ModelSettings {
    /// Bits of packed keys and values, and the tokens from which on; `None` where none are packed.
    pub fn kv_quantized(&self) -> Option<(u32, u32)> {
        (self.kv_bits > 0).then_some((self.kv_bits, self.kv_quantize_from_tokens))
    }

    /// The model that guesses for it; `None` where none does.
    pub fn drafted_by(&self) -> Option<&str> {
        self.draft_model.as_deref().filter(|_| !self.deterministic)
    }

    /// Tokens whose keys and values a sequence keeps; `None` where it keeps all.
    pub fn kv_tokens_max(&self) -> Option<u32> {
        (self.max_kv_tokens > 0).then_some(self.max_kv_tokens)
    }
}

impl ModelsConfig {
    /// How the model called `name` (or known by it as an alias) runs.
    pub fn settings(&self, name: &str) -> ModelSettings {
        let all = &self.all;
        let empty = ModelTable::default();
        let own = self.tables.get(self.canonical(name)).unwrap_or(&empty);
        ModelSettings {
            context_tokens_max: own.context_tokens_max.or(all.context_tokens_max),
            prefill_chunk_tokens: own.prefill_chunk_tokens.unwrap_or(all.prefill_chunk_tokens),
            prefill_chunk_tokens_busy: own
                .prefill_chunk_tokens_busy
                .unwrap_or(all.prefill_chunk_tokens_busy),
            running_max: own.running_max.unwrap_or(all.running_max),
            queued_max: own.queued_max.unwrap_or(all.queued_max),
            parked_max: own.parked_max.unwrap_or(all.parked_max),
            ageing_ms: own.ageing_ms.unwrap_or(all.ageing_ms),
            prefix_cache_bytes_max: own.prefix_cache_bytes_max.or(all.prefix_cache_bytes_max),
            guesses_max: own.guesses_max.unwrap_or(all.guesses_max),
            draft_model: own.draft_model.clone(),
            draft_tokens_max: own.draft_tokens_max.unwrap_or(all.draft_tokens_max),
            kv_bits: own.kv_bits.unwrap_or(all.kv_bits),
            kv_quantize_from_tokens: own
                .kv_quantize_from_tokens
                .unwrap_or(all.kv_quantize_from_tokens),
            max_kv_tokens: own.max_kv_tokens.unwrap_or(all.max_kv_tokens),
            prefix_disk_bytes_max: own.prefix_disk_bytes_max.unwrap_or(all.prefix_disk_bytes_max),
            prefix_disk_write_bytes_per_hour_max: own
                .prefix_disk_write_bytes_per_hour_max
                .unwrap_or(all.prefix_disk_write_bytes_per_hour_max),
            device: own.device.unwrap_or(all.device),
            cache_bytes_max: own.cache_bytes_max.or(all.cache_bytes_max),
            ttl_s: own.ttl_s.or(all.ttl_s),
            pinned: own.pinned.unwrap_or(all.pinned),
            deterministic: own.deterministic.unwrap_or(all.deterministic),
        }
    }

    /// The name of the table that `name` is an alias of; `name` itself when it is none.
    pub fn canonical<'a>(&'a self, name: &'a str) -> &'a str {
        if self.tables.contains_key(name) {
            return name;
        }
        self.tables
            .iter()
            .find(|(_, table)| table.aliases.iter().any(|alias| alias == name))
            .map_or(name, |(canonical, _)| canonical)
    }

    /// Names whose table gives a folder, with that folder.
    pub fn named_folders(&self) -> impl Iterator<Item = (&str, &PathBuf)> {
        self.tables.iter().filter_map(|(name, table)| Some((name.as_str(), table.path.as_ref()?)))
    }

    /// Models to load when the front starts.
    pub fn preloaded(&self) -> impl Iterator<Item = &str> {
        self.tables.iter().filter(|(_, table)| table.preload).map(|(name, _)| name.as_str())
    }
}
