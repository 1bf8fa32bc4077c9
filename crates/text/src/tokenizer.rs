//! The tokenizer of a model folder: ids and texts, special tokens, end-of-text ids.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use tokenizers::AddedToken;

use crate::decode::Decoder;
use crate::decode::SpecialText;
use crate::error::TextError;
use crate::folder::{read_object, read_text, refuse};
use crate::pieces::{Joining, Pieces};
use crate::segments::Cuts;

/// Limits on what a tokenizer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenizerLimits {
    /// Largest `tokenizer.json`, in bytes.
    pub file_bytes_max: u64,
    /// Longest text to encode, in bytes. Encoding takes about 0.7 µs and, while it runs, 150 bytes
    /// of memory for each; [`Tokenizer::encode_within`] takes a limit that fits a model's context.
    pub text_bytes_max: usize,
}

impl Default for TokenizerLimits {
    fn default() -> Self {
        TokenizerLimits { file_bytes_max: 256 * 1024 * 1024, text_bytes_max: 4 * 1024 * 1024 }
    }
}

/// The special tokens that `tokenizer_config.json` names, in its order: `bos_token` and so on.
/// A chat template sees each under its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens(Vec<(String, String)>);

/// The names that a special token may have, as `transformers` knows them.
const SPECIAL_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl SpecialTokens {
    /// Reads them from `tokenizer_config.json`'s object; each a string or an object with
    /// `content`.
    pub fn from_config(config: &Value) -> SpecialTokens {
        let named = SPECIAL_NAMES.iter().filter_map(|name| {
            let text = token_content(config.get(name)?)?;
            Some((name.to_string(), text.to_owned()))
        });
        SpecialTokens(named.collect())
    }

    /// The token's text, such as `<s>` for `bos_token`.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, text) = self.0.iter().find(|(known, _)| known == name)?;
        Some(text)
    }

    /// Names and texts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (&name[..], &text[..]))
    }
}

/// A model's tokenizer. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    raw: tokenizers::Tokenizer,
    pieces: Pieces,
    cuts: Cuts,
    /// No other tokenizer of this process has it.
    identity: u64,
    eos_ids: Vec<u32>,
    special_ids: Vec<u32>,
    specials: SpecialTokens,
    limits: TokenizerLimits,
}

/// The next tokenizer's identity.
static IDENTITIES: AtomicU64 = AtomicU64::new(0);

impl Tokenizer {
    /// Loads a model folder's tokenizer with the default limits.
    ///
    /// Reads `tokenizer.json` and, where present, `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json` and `config.json`.
    pub fn load(folder: &Path) -> Result<Tokenizer, TextError> {
        Tokenizer::load_within(folder, TokenizerLimits::default())
    }

    /// As [`Tokenizer::load`], with limits.
    pub fn load_within(folder: &Path, limits: TokenizerLimits) -> Result<Tokenizer, TextError> {
        let path = folder.join("tokenizer.json");
        let config = tokenizer_config(folder)?;
        let json = read_text(&path, limits.file_bytes_max)?.ok_or_else(|| {
            // Python of its own, which other tools run when they are told to trust it.
            let own_code = config.get("auto_map").is_some();
            refuse(
                &path,
                match own_code {
                    true => {
                        "is missing: this model's tokenizer is a program of its own (auto_map in \
                         tokenizer_config.json), which mlxd never runs; take a conversion that has \
                         a tokenizer.json"
                    }
                    false => {
                        "is missing; a model that ships tokenizer.model alone has to be saved \
                         again with a fast tokenizer"
                    }
                },
            )
        })?;
        let mut eos = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            if let Some(object) = read_object(&folder.join(name))? {
                eos.extend(eos_of(&object));
            }
        }
        Tokenizer::from_json(&json, &config, &eos, limits).map_err(|error| match error {
            TextError::Tokenizer(reason) => refuse(&path, reason),
            other => other,
        })
    }

    /// Makes a tokenizer of `tokenizer.json`'s text, `tokenizer_config.json`'s object (or null)
    /// and further end-of-text ids.
    pub fn from_json(
        json: &str,
        config: &Value,
        eos: &[u32],
        limits: TokenizerLimits,
    ) -> Result<Tokenizer, TextError> {
        // The file comes from a stranger and its parser may panic on nonsense.
        let built = catch_unwind(AssertUnwindSafe(|| {
            let mut raw: tokenizers::Tokenizer = json
                .parse()
                .map_err(|error| TextError::Tokenizer(format!("does not parse: {error}")))?;
            add_configured_tokens(&mut raw, config)?;
            raw.with_padding(None);
            raw.with_truncation(None).map_err(|error| TextError::Tokenizer(error.to_string()))?;
            let pieces = Pieces::build(&raw)?;
            Ok((raw, pieces))
        }));
        let (raw, pieces) = built
            .unwrap_or_else(|_| Err(TextError::Tokenizer("its contents make no sense".into())))?;
        let specials = SpecialTokens::from_config(config);
        let named_eos = specials.get("eos_token").and_then(|t| raw.token_to_id(t));
        let eos_ids: BTreeSet<u32> = eos
            .iter()
            .copied()
            .chain(named_eos)
            .filter(|&id| (id as usize) < pieces.len())
            .collect();
        let special_ids = (0..pieces.len() as u32)
            .filter(|&id| pieces.rest(id).is_some_and(|piece| piece.special))
            .collect();
        Ok(Tokenizer {
            inner: Arc::new(Inner {
                cuts: Cuts::of(&raw),
                identity: IDENTITIES.fetch_add(1, Ordering::Relaxed),
                raw,
                pieces,
                eos_ids: eos_ids.into_iter().collect(),
                special_ids,
                specials,
                limits,
            }),
        })
    }

    /// The text's token ids. `add_special` puts the model's own start and end tokens around it,
    /// as for a bare prompt; a rendered chat template already has them.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        self.encode_within(text, add_special, self.inner.limits.text_bytes_max)
    }

    /// As [`Tokenizer::encode`], with a limit of its own.
    pub fn encode_within(
        &self,
        text: &str,
        add_special: bool,
        bytes_max: usize,
    ) -> Result<Vec<u32>, TextError> {
        if text.len() > bytes_max {
            return Err(TextError::TextTooLong { bytes: text.len(), bytes_max });
        }
        let encoding = self
            .inner
            .raw
            .encode_fast(text, add_special)
            .map_err(|error| TextError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of the ids; with `skip_special`, without special tokens. Ids without a token
    /// give no text, unfinished characters become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let specials = match skip_special {
            true => SpecialText::Skip,
            false => SpecialText::Keep,
        };
        let pieces = &self.inner.pieces;
        if pieces.joining == Joining::Window {
            let ids: Vec<u32> = ids
                .iter()
                .copied()
                .filter(|&id| pieces.rest(id).is_some_and(|p| !(skip_special && p.special)))
                .collect();
            return match ids.is_empty() {
                true => String::new(),
                false => self.inner.raw.decode(&ids, false).unwrap_or_default(),
            };
        }
        let mut decoder = Decoder::with_specials(self, &[], specials);
        let mut text = String::with_capacity(ids.len() * 4);
        for &id in ids {
            decoder.push_into(id, &mut text);
        }
        text.push_str(&decoder.finish());
        text
    }

    /// The ids that end a generation, ascending: those of `generation_config.json` and
    /// `config.json` and the configured `eos_token`.
    pub fn eos_ids(&self) -> &[u32] {
        &self.inner.eos_ids
    }

    /// One more than the highest token id. A model's logits may be wider.
    pub fn vocab_size(&self) -> usize {
        self.inner.pieces.len()
    }

    /// The bytes that a token stands for inside a text; `None` for an id without a token. They
    /// need not be whole characters.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        Some(self.inner.pieces.rest(id)?.bytes)
    }

    /// [`Tokenizer::token_bytes`] as text, with U+FFFD for what is not UTF-8.
    pub fn token_text(&self, id: u32) -> Option<String> {
        Some(String::from_utf8_lossy(self.token_bytes(id)?).into_owned())
    }

    /// The id of a token given as the vocabulary writes it, such as `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.raw.token_to_id(token)
    }

    /// The ids of all special tokens, ascending.
    pub fn special_ids(&self) -> &[u32] {
        &self.inner.special_ids
    }

    /// Whether the id is a special token's.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.pieces.rest(id).is_some_and(|p| p.special)
    }

    /// The special tokens by name.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.inner.specials
    }

    /// The first id that stands for one text here and for another in `other`; ids that one of them
    /// lacks are no difference.
    pub fn first_difference(&self, other: &Tokenizer) -> Option<u32> {
        let ids = 0..self.vocab_size().min(other.vocab_size()) as u32;
        let texts = |id| self.token_bytes(id).zip(other.token_bytes(id));
        ids.into_iter().find(|id| texts(*id).is_some_and(|(own, other)| own != other))
    }

    /// The limits that it was loaded with.
    pub fn limits(&self) -> TokenizerLimits {
        self.inner.limits
    }

    pub(crate) fn pieces(&self) -> &Pieces {
        &self.inner.pieces
    }

    pub(crate) fn cuts(&self) -> &Cuts {
        &self.inner.cuts
    }

    pub(crate) fn identity(&self) -> u64 {
        self.inner.identity
    }

    pub(crate) fn raw(&self) -> &tokenizers::Tokenizer {
        &self.inner.raw
    }
}

/// `tokenizer_config.json` with the tokens that only `special_tokens_map.json` names.
pub(crate) fn tokenizer_config(folder: &Path) -> Result<Value, TextError> {
    let config = read_object(&folder.join("tokenizer_config.json"))?;
    let mut config = config.unwrap_or_else(|| Value::Object(Default::default()));
    if let Some(map) = read_object(&folder.join("special_tokens_map.json"))? {
        for name in SPECIAL_NAMES {
            if config.get(name).is_none()
                && let Some(token) = map.get(name)
            {
                config[name] = token.clone();
            }
        }
    }
    Ok(config)
}

/// Tokens that the configuration adds or calls special and `tokenizer.json` does not.
fn add_configured_tokens(raw: &mut tokenizers::Tokenizer, config: &Value) -> Result<(), TextError> {
    let mut missing: Vec<(u32, AddedToken)> = Vec::new();
    if let Some(Value::Object(tokens)) = config.get("added_tokens_decoder") {
        for (id, token) in tokens {
            if let (Ok(id), Some(token)) = (id.parse(), added_token(token))
                && raw.token_to_id(&token.content).is_none()
            {
                missing.push((id, token));
            }
        }
    }
    missing.sort_by_key(|(id, _)| *id);
    let refused = |error: tokenizers::Error| TextError::Tokenizer(error.to_string());
    raw.add_tokens(missing.into_iter().map(|(_, token)| token)).map_err(refused)?;
    let named = SPECIAL_NAMES.iter().filter_map(|name| token_content(config.get(name)?));
    let listed = ["additional_special_tokens", "extra_special_tokens"]
        .iter()
        .filter_map(|name| config.get(name)?.as_array())
        .flatten()
        .filter_map(token_content);
    let special: Vec<AddedToken> = named
        .chain(listed)
        .filter(|text| {
            let vocabulary = raw.get_added_vocabulary();
            raw.token_to_id(text).is_some() && !vocabulary.get_vocab().contains_key(*text)
        })
        .map(|text| AddedToken::from(text, true))
        .collect();
    raw.add_special_tokens(special).map_err(refused)?;
    Ok(())
}

fn added_token(value: &Value) -> Option<AddedToken> {
    let flag = |name| value.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    let mut token = AddedToken::from(token_content(value)?, special);
    token.lstrip = flag("lstrip").unwrap_or(false);
    token.rstrip = flag("rstrip").unwrap_or(false);
    token.single_word = flag("single_word").unwrap_or(false);
    token.normalized = flag("normalized").unwrap_or(!special);
    Some(token)
}

/// A token given as a string or as an object with `content`.
fn token_content(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Object(object) => object.get("content")?.as_str(),
        _ => None,
    }
}

/// `eos_token_id` of a configuration, one or several, also where a multimodal model nests it.
fn eos_of(config: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let found =
        config.get("eos_token_id").or_else(|| config.get("text_config")?.get("eos_token_id"));
    match found {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}
