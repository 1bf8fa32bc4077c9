//! Tokenising a conversation again that grew by a message: parts that were tokenised before are
//! taken from a cache.
//!
//! A tokenizer first splits a text at its added tokens, as they stand in the text, and treats what
//! lies between each by itself. So a text may be cut in front of such a token and its parts
//! tokenised apart, and the ids are those of the whole, if the token is matched at that place
//! whatever stands before and behind it. [`Cuts`] knows the tokens of which that is certain.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::AddedToken;

use crate::error::TextError;
use crate::tokenizer::Tokenizer;

/// A part is cut off when it has so many bytes: shorter ones are not worth a place.
const PART_BYTES_MIN: usize = 256;

/// Set in a tokenizer's number where the parts have its own start and end tokens around them.
const WITH_SPECIAL: u64 = 1 << 63;

/// What a part takes besides its text and its ids: two entries of maps and their allocations.
const PART_OVERHEAD_BYTES: usize = 256;

/// Where a tokenizer's texts may be cut.
#[derive(Debug)]
pub(crate) struct Cuts(Option<AhoCorasick>);

impl Cuts {
    pub(crate) fn of(raw: &tokenizers::Tokenizer) -> Cuts {
        let tokens: Vec<&AddedToken> =
            raw.get_added_vocabulary().get_added_tokens_decoder().values().collect();
        // Characters inside of tokens: a match that began earlier may reach over them.
        let inner: std::collections::BTreeSet<char> =
            tokens.iter().flat_map(|token| token.content.chars().skip(1)).collect();
        let plain = |token: &AddedToken| !token.normalized && !token.lstrip && !token.single_word;
        let odd: Vec<&str> =
            tokens.iter().filter(|token| !plain(token)).map(|token| &token.content[..]).collect();
        let certain = |token: &&&AddedToken| {
            // Neither a space nor part of a word: tokens before it look at what follows them.
            let first = token.content.chars().next();
            let marked = first.is_some_and(|c| c.is_ascii_punctuation() && c != '_');
            let alone = first.is_some_and(|c| !inner.contains(&c));
            // A longer match at the same place would be another token's.
            let longest = !odd.iter().any(|other| other.starts_with(&token.content));
            plain(token) && marked && alone && longest
        };
        let certain: Vec<&str> =
            tokens.iter().filter(certain).map(|token| &token.content[..]).collect();
        let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&certain);
        Cuts(built.ok().filter(|_| !certain.is_empty()))
    }

    /// The text's parts that end where it may be cut and are long enough, and what is left.
    fn split<'a>(&self, text: &'a str) -> (Vec<&'a str>, &'a str) {
        let (mut parts, mut from) = (Vec::new(), 0);
        for found in self.0.iter().flat_map(|cuts| cuts.find_iter(text)) {
            if found.start() - from >= PART_BYTES_MIN {
                parts.push(&text[from..found.start()]);
                from = found.start();
            }
        }
        (parts, &text[from..])
    }
}

/// What a [`SegmentCache`] did and holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SegmentFigures {
    /// Bytes of text whose ids were there.
    pub reused_bytes: u64,
    /// Bytes of text that were tokenised.
    pub encoded_bytes: u64,
    /// Bytes held, texts and ids.
    pub held_bytes: usize,
}

/// Ids of parts of texts, of any number of tokenizers, within a number of bytes; those unused for
/// longest make room. A part is found by its whole text, so that none is taken for another.
#[derive(Debug)]
pub struct SegmentCache {
    bytes_max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// By tokenizer, then by text.
    parts: HashMap<u64, HashMap<Arc<str>, Part>>,
    /// When each was used last.
    uses: BTreeMap<u64, (u64, Arc<str>)>,
    clock: u64,
    figures: SegmentFigures,
}

#[derive(Debug)]
struct Part {
    ids: Arc<[u32]>,
    used: u64,
}

impl SegmentCache {
    /// An empty cache. With 0 bytes it keeps nothing.
    pub fn new(bytes_max: usize) -> SegmentCache {
        SegmentCache { bytes_max, held: Mutex::default() }
    }

    /// What it did and holds.
    pub fn figures(&self) -> SegmentFigures {
        self.lock().figures
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Held {
    fn find(&mut self, tokenizer: u64, text: &str) -> Option<Arc<[u32]>> {
        let part = self.parts.get_mut(&tokenizer)?.get_mut(text)?;
        self.clock += 1;
        let key = self.uses.remove(&part.used)?;
        part.used = self.clock;
        self.uses.insert(self.clock, key);
        Some(part.ids.clone())
    }

    fn keep(&mut self, tokenizer: u64, text: &str, ids: Arc<[u32]>, bytes_max: usize) {
        let bytes = bytes_of(text, &ids);
        if bytes > bytes_max || self.find(tokenizer, text).is_some() {
            return;
        }
        while self.figures.held_bytes + bytes > bytes_max && self.drop_oldest() {}
        let text: Arc<str> = text.into();
        self.clock += 1;
        self.uses.insert(self.clock, (tokenizer, text.clone()));
        self.parts.entry(tokenizer).or_default().insert(text, Part { ids, used: self.clock });
        self.figures.held_bytes += bytes;
    }

    fn drop_oldest(&mut self) -> bool {
        let Some((_, (tokenizer, text))) = self.uses.pop_first() else {
            return false;
        };
        if let Some(parts) = self.parts.get_mut(&tokenizer) {
            if let Some(part) = parts.remove(&text) {
                self.figures.held_bytes -= bytes_of(&text, &part.ids);
            }
            if parts.is_empty() {
                self.parts.remove(&tokenizer);
            }
        }
        true
    }
}

fn bytes_of(text: &str, ids: &[u32]) -> usize {
    text.len() + size_of_val(ids) + PART_OVERHEAD_BYTES
}

impl Tokenizer {
    /// As [`Tokenizer::encode`], taking from `cache` what it has of this text, and leaving there
    /// what it had not. With the model's own start and end tokens around it a text is one part.
    pub fn encode_cached(
        &self,
        text: &str,
        add_special: bool,
        cache: &SegmentCache,
    ) -> Result<Vec<u32>, TextError> {
        let bytes_max = self.limits().text_bytes_max;
        if text.len() > bytes_max {
            return Err(TextError::TextTooLong { bytes: text.len(), bytes_max });
        }
        let (mut parts, mut rest) = match add_special || cache.bytes_max == 0 {
            true => (Vec::new(), text),
            false => self.cuts().split(text),
        };
        if rest.len() >= PART_BYTES_MIN && cache.bytes_max > 0 {
            parts.push(std::mem::take(&mut rest));
        }
        let own = self.identity() | if add_special { WITH_SPECIAL } else { 0 };
        let mut found: Vec<Option<Arc<[u32]>>> = match parts.is_empty() {
            true => Vec::new(),
            false => {
                let mut held = cache.lock();
                parts.iter().map(|part| held.find(own, part)).collect()
            }
        };
        // Tokenised outside of the lock: meanwhile others look theirs up.
        let mut new = Vec::new();
        let mut encoded = rest.len();
        for (part, ids) in parts.iter().zip(&mut found) {
            if ids.is_none() {
                let made: Arc<[u32]> = self.encode(part, add_special)?.into();
                encoded += part.len();
                new.push((*part, made.clone()));
                *ids = Some(made);
            }
        }
        let tail = match rest.is_empty() && !parts.is_empty() {
            true => Vec::new(),
            false => self.encode(rest, add_special)?,
        };
        let mut ids = Vec::with_capacity(text.len() / 4 + tail.len());
        found.iter().flatten().for_each(|part| ids.extend_from_slice(part));
        ids.extend_from_slice(&tail);
        let mut held = cache.lock();
        held.figures.reused_bytes += (text.len() - encoded) as u64;
        held.figures.encoded_bytes += encoded as u64;
        for (part, made) in new {
            held.keep(own, part, made, cache.bytes_max);
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::TokenizerLimits;
    use serde_json::{Value, json};

    fn cuts(tokens: &[(&str, &str)]) -> Vec<String> {
        let token = |(id, (content, odd)): (usize, &(&str, &str))| {
            let flag = |name| *odd == name;
            json!({"id": id, "content": content, "single_word": flag("single_word"),
                "lstrip": flag("lstrip"), "rstrip": flag("rstrip"),
                "normalized": flag("normalized"), "special": true})
        };
        let added: Vec<Value> = tokens.iter().enumerate().map(token).collect();
        let vocab: serde_json::Map<String, Value> = tokens
            .iter()
            .enumerate()
            .map(|(id, (content, _))| (content.to_string(), id.into()))
            .collect();
        let json = json!({"version": "1.0", "added_tokens": added,
            "model": {"type": "BPE", "vocab": vocab, "merges": []}});
        let tokenizer =
            Tokenizer::from_json(&json.to_string(), &Value::Null, &[], TokenizerLimits::default());
        let tokenizer = tokenizer.unwrap();
        let padding = "x".repeat(PART_BYTES_MIN);
        let cut = |content: &str| {
            let text = format!("{padding}{content}");
            !tokenizer.cuts().split(&text).0.is_empty()
        };
        tokens.iter().filter(|(content, _)| cut(content)).map(|(c, _)| c.to_string()).collect()
    }

    #[test]
    fn texts_are_cut_only_where_it_is_certain() {
        assert_eq!(cuts(&[("<a>", ""), ("<b>", "rstrip"), ("[c]", "")]), ["<a>", "<b>", "[c]"]);
        let odd = [("<a>", "lstrip"), ("<b>", "single_word"), ("<c>", "normalized")];
        assert_eq!(cuts(&odd), [""; 0]);
        // Inside of another, part of a word, before a longer one that is odd.
        assert_eq!(cuts(&[("<a>", ""), ("[<]", "")]), ["[<]"]);
        assert_eq!(cuts(&[("word", ""), ("_x", ""), (" <", "")]), [""; 0]);
        assert_eq!(cuts(&[("<a", ""), ("<a>", "single_word"), ("<b", "")]), ["<b"]);
    }

    #[test]
    fn the_oldest_make_room() {
        let mut held = Held::default();
        let ids = |id: u32| Arc::from([id]);
        let bytes_max = 2 * bytes_of("a", &[1]);
        held.keep(1, "a", ids(1), bytes_max);
        held.keep(2, "a", ids(2), bytes_max);
        assert_eq!(held.find(1, "a"), Some(ids(1)));
        held.keep(1, "b", ids(3), bytes_max);
        assert_eq!((held.find(2, "a"), held.find(1, "a")), (None, Some(ids(1))));
        assert_eq!(held.figures.held_bytes, bytes_max);
        held.keep(1, &"c".repeat(bytes_max), ids(4), bytes_max);
        assert_eq!(held.find(1, "b"), Some(ids(3)), "too large to be kept");
        assert_eq!(held.uses.len(), 2);
    }
}
