//! What each token stands for, worked out once when the tokenizer is loaded.
//!
//! A `tokenizer.json` names a chain of decoders that is defined over the whole list of tokens.
//! For the chains that language models use, the output is a concatenation of per-token pieces
//! plus a little state, so a table of pieces makes decoding a token a copy of a few bytes. Other
//! chains are left to the `tokenizers` crate over a sliding window ([`Joining::Window`]).

use tokenizers::decoders::DecoderWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{Decoder as _, Model as _};

use crate::error::TextError;

/// Largest token id accepted from a tokenizer file.
pub(crate) const TOKEN_ID_MAX: u32 = (1 << 22) - 1;

/// How pieces become text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joining {
    /// Pieces are text; the output is their concatenation.
    Text,
    /// Pieces are bytes; the output is their concatenation read as UTF-8, each ill-formed
    /// stretch becoming one U+FFFD.
    Bytes,
    /// Pieces are text, except byte tokens: a run of them is text if it is UTF-8 as a whole,
    /// otherwise one U+FFFD for each byte.
    ByteRuns,
    /// No table: the chain is run over a window of the last tokens.
    Window,
}

/// How a tokenizer's ids become text.
#[derive(Debug)]
pub(crate) struct Pieces {
    pub(crate) joining: Joining,
    /// Up to so many of this character are dropped at the very start of the output.
    pub(crate) strip_start: Option<(char, usize)>,
    /// Pieces of tokens that are not the first.
    rest: Table,
    /// Pieces of the first token, where the position matters.
    first: Option<Table>,
    flags: Vec<u8>,
}

const KNOWN: u8 = 1;
const SPECIAL: u8 = 2;
const BYTE: u8 = 4;

/// Byte strings by index, in one allocation.
#[derive(Debug)]
struct Table {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Table {
    fn with_capacity(count: usize) -> Table {
        Table { bytes: Vec::with_capacity(count * 8), ends: Vec::with_capacity(count) }
    }

    fn push(&mut self, piece: &[u8]) -> Result<(), TextError> {
        self.bytes.extend_from_slice(piece);
        let end = u32::try_from(self.bytes.len())
            .map_err(|_| TextError::Tokenizer("its tokens take more than 4 GiB".into()))?;
        self.ends.push(end);
        Ok(())
    }

    fn get(&self, index: usize) -> &[u8] {
        let start = match index {
            0 => 0,
            _ => self.ends[index - 1] as usize,
        };
        &self.bytes[start..self.ends[index] as usize]
    }
}

/// A token's piece and what kind of token it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) special: bool,
    /// A byte token of a byte-fallback vocabulary; `bytes` is that one byte.
    pub(crate) byte: bool,
}

impl Pieces {
    /// Works out every token's piece.
    pub(crate) fn build(tokenizer: &tokenizers::Tokenizer) -> Result<Pieces, TextError> {
        let chain = flatten(tokenizer.get_decoder());
        if chain.iter().any(|stage| strips_ends(stage)) {
            // The library's own decoder fails on tokens shorter than what it strips.
            return Err(TextError::Tokenizer(
                "its decoder strips the ends of tokens, which is not supported".into(),
            ));
        }
        let plan = Plan::of(&chain);
        let count = id_count(tokenizer)?;
        let added = tokenizer.get_added_vocabulary();
        let mut pieces = Pieces {
            joining: plan.joining,
            strip_start: plan.strip_start,
            rest: Table::with_capacity(count),
            first: plan.positional.then(|| Table::with_capacity(count)),
            flags: Vec::with_capacity(count),
        };
        let byte_of_char = byte_level_alphabet();
        for id in 0..count as u32 {
            let Some(token) =
                added.simple_id_to_token(id).or_else(|| tokenizer.get_model().id_to_token(id))
            else {
                pieces.push(&[], &[], 0)?;
                continue;
            };
            let special = if added.is_special_token(&token) { SPECIAL } else { 0 };
            let [first, rest] = plan.apply(&token);
            let byte = match plan.joining {
                Joining::ByteRuns => byte_token(&rest),
                _ => None,
            };
            match (plan.joining, byte) {
                (_, Some(byte)) => pieces.push(&[byte], &[byte], KNOWN | special | BYTE)?,
                (Joining::Bytes, _) => {
                    let [first, rest] = [first, rest].map(|text| to_bytes(&byte_of_char, text));
                    pieces.push(&first, &rest, KNOWN | special)?;
                }
                _ => pieces.push(first.as_bytes(), rest.as_bytes(), KNOWN | special)?,
            }
        }
        Ok(pieces)
    }

    fn push(&mut self, first: &[u8], rest: &[u8], flags: u8) -> Result<(), TextError> {
        if let Some(table) = &mut self.first {
            table.push(first)?;
        }
        self.rest.push(rest)?;
        self.flags.push(flags);
        Ok(())
    }

    /// One more than the highest token id.
    pub(crate) fn len(&self) -> usize {
        self.flags.len()
    }

    /// The piece of a token that other tokens precede; `None` for an id without a token.
    pub(crate) fn rest(&self, id: u32) -> Option<Piece<'_>> {
        self.piece(id, &self.rest)
    }

    /// The piece of the first token of an output.
    pub(crate) fn first(&self, id: u32) -> Option<Piece<'_>> {
        self.piece(id, self.first.as_ref().unwrap_or(&self.rest))
    }

    fn piece<'a>(&'a self, id: u32, table: &'a Table) -> Option<Piece<'a>> {
        let index = id as usize;
        let flags = *self.flags.get(index)?;
        (flags & KNOWN != 0).then(|| Piece {
            bytes: table.get(index),
            special: flags & SPECIAL != 0,
            byte: flags & BYTE != 0,
        })
    }
}

/// The part of a decoder chain that acts on each token by itself, and what follows it.
struct Plan<'a> {
    per_token: Vec<&'a DecoderWrapper>,
    /// No decoder at all: tokens are joined by spaces.
    spaced: bool,
    positional: bool,
    joining: Joining,
    strip_start: Option<(char, usize)>,
}

impl<'a> Plan<'a> {
    fn of(chain: &[&'a DecoderWrapper]) -> Plan<'a> {
        let per_token: Vec<_> =
            chain.iter().copied().take_while(|stage| acts_per_token(stage)).collect();
        let spaced = chain.is_empty();
        let positional = spaced || per_token.iter().any(|stage| is_positional(stage));
        let (joining, strip_start) = match joining_of(&chain[per_token.len()..]) {
            Some(found) => found,
            None => (Joining::Window, None),
        };
        if joining == Joining::Window {
            return Plan {
                per_token: Vec::new(),
                spaced: false,
                positional: false,
                joining,
                strip_start,
            };
        }
        Plan { per_token, spaced, positional, joining, strip_start }
    }

    /// The token's text as the first of an output, and as a later one.
    fn apply(&self, token: &str) -> [String; 2] {
        if self.spaced {
            return [token.to_owned(), format!(" {token}")];
        }
        if self.per_token.is_empty() {
            return [token.to_owned(), token.to_owned()];
        }
        let run = |mut tokens: Vec<String>| {
            for stage in &self.per_token {
                // These stages have no error of their own; a failing pattern leaves the text.
                tokens = stage.decode_chain(tokens.clone()).unwrap_or(tokens);
            }
            tokens.pop().unwrap_or_default()
        };
        let rest = run(vec![String::from("a"), token.to_owned()]);
        let first = match self.positional {
            true => run(vec![token.to_owned()]),
            false => rest.clone(),
        };
        [first, rest]
    }
}

/// Whether a stage maps each token to one token, knowing no more than whether it is the first.
fn acts_per_token(stage: &DecoderWrapper) -> bool {
    use DecoderWrapper as D;
    matches!(stage, D::Replace(_) | D::Metaspace(_) | D::WordPiece(_) | D::Strip(_))
}

fn strips_ends(stage: &DecoderWrapper) -> bool {
    matches!(stage, DecoderWrapper::Strip(strip) if strip.stop > 0)
}

fn is_positional(stage: &DecoderWrapper) -> bool {
    match stage {
        DecoderWrapper::WordPiece(_) => true,
        DecoderWrapper::Metaspace(space) => space.prepend_scheme != PrependScheme::Never,
        _ => false,
    }
}

/// How the stages after the per-token ones join the pieces, if a table can express it.
fn joining_of(stages: &[&DecoderWrapper]) -> Option<(Joining, Option<(char, usize)>)> {
    use DecoderWrapper as D;
    let (joining, fused, mut after) = match stages {
        [D::ByteLevel(_), after @ ..] => (Joining::Bytes, true, after),
        [D::ByteFallback(_), after @ ..] => (Joining::ByteRuns, false, after),
        after => (Joining::Text, false, after),
    };
    let mut fused = fused;
    while let [D::Fuse(_), rest @ ..] = after {
        (fused, after) = (true, rest);
    }
    match after {
        [] => Some((joining, None)),
        [D::Strip(strip)] if fused => Some((joining, Some((strip.content, strip.start)))),
        _ => None,
    }
}

fn flatten(decoder: Option<&DecoderWrapper>) -> Vec<&DecoderWrapper> {
    match decoder {
        None => Vec::new(),
        Some(DecoderWrapper::Sequence(sequence)) => {
            sequence.get_decoders().iter().flat_map(|decoder| flatten(Some(decoder))).collect()
        }
        Some(decoder) => vec![decoder],
    }
}

fn id_count(tokenizer: &tokenizers::Tokenizer) -> Result<usize, TextError> {
    let highest = tokenizer.get_vocab(true).into_values().max();
    match highest {
        None => Err(TextError::Tokenizer("it has no tokens".into())),
        Some(id) if id > TOKEN_ID_MAX => Err(TextError::Tokenizer(format!(
            "it has a token id of {id}; at most {TOKEN_ID_MAX} is accepted"
        ))),
        Some(id) => Ok(id as usize + 1),
    }
}

/// The byte of a byte-fallback token, `<0x0A>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    match digits.len() {
        2 => u8::from_str_radix(digits, 16).ok(),
        _ => None,
    }
}

/// Byte-level text back to its bytes; a token with a character outside that alphabet is
/// itself (an added token, say).
fn to_bytes(byte_of_char: &[Option<u8>; 324], token: String) -> Vec<u8> {
    let bytes: Option<Vec<u8>> =
        token.chars().map(|c| byte_of_char.get(c as usize).copied().flatten()).collect();
    bytes.unwrap_or_else(|| token.into_bytes())
}

/// GPT-2's mapping of bytes to printable characters, inverted: printable Latin-1 stands for
/// itself, the other 68 bytes for U+0100 onwards, in order.
fn byte_level_alphabet() -> [Option<u8>; 324] {
    let mut byte_of_char = [None; 324];
    let mut next = 256;
    for byte in 0..=255u8 {
        let place = match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => byte as usize,
            _ => {
                next += 1;
                next - 1
            }
        };
        byte_of_char[place] = Some(byte);
    }
    byte_of_char
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_agrees_with_the_library() {
        let ours: Vec<char> = byte_level_alphabet()
            .iter()
            .enumerate()
            .filter(|(_, byte)| byte.is_some())
            .map(|(c, _)| char::from_u32(c as u32).unwrap())
            .collect();
        let mut theirs: Vec<char> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
        theirs.sort_unstable();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn only_whole_byte_tokens_count_as_bytes() {
        assert_eq!(byte_token("<0xE2>"), Some(0xE2));
        for other in ["<0xE>", "<0xE22>", "0xE2", "<0xGG>", "<0x+1>x"] {
            assert_eq!(byte_token(other), None, "{other}");
        }
    }
}
