//! Incremental decode: token ids in, whole characters out.
//!
//! The texts of all pushes and of [`Decoder::finish`] together equal the decode of all ids at
//! once. Text is given as soon as no later token can change it: an unfinished character waits
//! for its last byte, a run of byte-fallback tokens for its end.

use tokenizers::tokenizer::Result as LibraryResult;

use crate::pieces::{Joining, Piece, Pieces};
use crate::tokenizer::Tokenizer;

/// Longest run of byte-fallback tokens held back whole. Whether such a run is text is known only
/// at its end; past this length its complete characters are given, so that a stream in a script
/// that the vocabulary lacks still moves.
pub(crate) const BYTE_RUN_HELD_MAX: usize = 256;

/// Most tokens held back for an unfinished character by the sliding window.
const WINDOW_HELD_MAX: usize = 16;

const REPLACEMENT: char = '\u{FFFD}';

/// What to do with special tokens such as `<|im_end|>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpecialText {
    /// Leave them out, as an answer to a user does.
    #[default]
    Skip,
    /// Write them like other tokens, for parsers that look for them.
    Keep,
}

/// Decodes one stream of tokens. Cheap to make: the tables are the tokenizer's.
#[derive(Debug, Clone)]
pub struct Decoder {
    tokenizer: Tokenizer,
    specials: SpecialText,
    state: State,
    /// Text of the last push.
    text: String,
}

#[derive(Debug, Clone, Default)]
struct State {
    /// A token has been decoded, so the next one is not the first.
    started: bool,
    /// Characters that may still be dropped at the start.
    strip_left: usize,
    /// Bytes of an unfinished character, or of an open run of byte tokens.
    held: Vec<u8>,
    window: Window,
}

/// The last tokens, for decoder chains that have no table.
#[derive(Debug, Clone, Default)]
struct Window {
    ids: Vec<u32>,
    /// The text of this many leading ids has been given.
    read: usize,
}

impl Decoder {
    /// A decoder for the tokens that follow `prompt_tail`, leaving special tokens out.
    ///
    /// The tail (the prompt's last few tokens are enough) decides what depends on what came
    /// before: a word's leading space, or a character begun in the prompt. With an empty tail the
    /// first token is decoded as the first of a text.
    pub fn new(tokenizer: &Tokenizer, prompt_tail: &[u32]) -> Decoder {
        Decoder::with_specials(tokenizer, prompt_tail, SpecialText::Skip)
    }

    /// As [`Decoder::new`], saying what becomes of special tokens.
    pub fn with_specials(
        tokenizer: &Tokenizer,
        prompt_tail: &[u32],
        specials: SpecialText,
    ) -> Decoder {
        let strip = tokenizer.pieces().strip_start;
        let mut decoder = Decoder {
            tokenizer: tokenizer.clone(),
            specials,
            state: State { strip_left: strip.map_or(0, |(_, count)| count), ..State::default() },
            text: String::new(),
        };
        for &id in prompt_tail {
            decoder.push(id);
        }
        decoder.forget_shown();
        decoder
    }

    /// Takes the next token and returns the text that it makes certain, often empty.
    /// An id without a token gives no text.
    pub fn push(&mut self, id: u32) -> &str {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        self.push_into(id, &mut text);
        self.text = text;
        &self.text
    }

    /// As [`Decoder::push`], appending to `out`.
    pub fn push_into(&mut self, id: u32, out: &mut String) {
        let pieces = self.tokenizer.pieces();
        let piece = match self.state.started {
            true => pieces.rest(id),
            false => pieces.first(id),
        };
        let Some(piece) = piece else { return };
        if piece.special && self.specials == SpecialText::Skip {
            return;
        }
        self.state.started = true;
        if pieces.joining == Joining::Window {
            let raw = self.tokenizer.raw();
            self.state.window.push(id, out, |ids| raw.decode(ids, false));
        } else {
            self.state.push_piece(piece, pieces, out);
        }
    }

    /// The text that was still held back: what the full decode shows for an unfinished end.
    /// The decoder is then as new, with an empty prompt tail.
    pub fn finish(&mut self) -> String {
        let mut out = String::new();
        let pieces = self.tokenizer.pieces();
        match pieces.joining {
            Joining::Text => {}
            Joining::Bytes if self.state.held.is_empty() => {}
            Joining::Bytes => self.state.emit("\u{FFFD}", pieces, &mut out),
            Joining::ByteRuns => self.state.close_run(pieces, &mut out),
            Joining::Window => {
                let raw = self.tokenizer.raw();
                self.state.window.flush(&mut out, |ids| raw.decode(ids, false));
            }
        }
        self.state = State {
            strip_left: pieces.strip_start.map_or(0, |(_, count)| count),
            ..State::default()
        };
        out
    }

    /// Counts the complete characters of what is held back as given: they are the prompt's.
    fn forget_shown(&mut self) {
        let pieces = self.tokenizer.pieces();
        match pieces.joining {
            Joining::ByteRuns => self.state.release_run(pieces, &mut String::new()),
            Joining::Window => self.state.window.read = self.state.window.ids.len(),
            Joining::Text | Joining::Bytes => {}
        }
        self.text.clear();
    }
}

impl State {
    fn push_piece(&mut self, piece: Piece<'_>, pieces: &Pieces, out: &mut String) {
        match pieces.joining {
            Joining::Bytes => self.push_bytes(piece.bytes, pieces, out),
            Joining::ByteRuns if piece.byte => {
                self.held.extend_from_slice(piece.bytes);
                if self.held.len() >= BYTE_RUN_HELD_MAX {
                    self.release_run(pieces, out);
                }
            }
            Joining::ByteRuns => {
                self.close_run(pieces, out);
                self.emit(&String::from_utf8_lossy(piece.bytes), pieces, out);
            }
            Joining::Text | Joining::Window => {
                self.emit(&String::from_utf8_lossy(piece.bytes), pieces, out);
            }
        }
    }

    /// Appends text, dropping what the tokenizer strips from the start.
    fn emit(&mut self, text: &str, pieces: &Pieces, out: &mut String) {
        let mut text = text;
        if self.strip_left > 0
            && let Some((content, _)) = pieces.strip_start
        {
            while self.strip_left > 0
                && let Some(shorter) = text.strip_prefix(content)
            {
                (text, self.strip_left) = (shorter, self.strip_left - 1);
            }
            if !text.is_empty() {
                self.strip_left = 0;
            }
        }
        out.push_str(text);
    }

    fn push_bytes(&mut self, bytes: &[u8], pieces: &Pieces, out: &mut String) {
        if self.held.is_empty() {
            let rest = self.emit_utf8(bytes, pieces, out);
            self.held.extend_from_slice(rest);
            return;
        }
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(bytes);
        let kept = self.emit_utf8(&all, pieces, out).len();
        all.drain(..all.len() - kept);
        self.held = all;
    }

    /// Emits bytes as UTF-8, each ill-formed stretch as one U+FFFD (as the Unicode standard and
    /// `String::from_utf8_lossy` do); returns the unfinished character at the end.
    fn emit_utf8<'a>(&mut self, bytes: &'a [u8], pieces: &Pieces, out: &mut String) -> &'a [u8] {
        let mut rest = bytes;
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.emit(text, pieces, out);
                    return &[];
                }
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            self.emit(&String::from_utf8_lossy(valid), pieces, out);
            let Some(ill_formed) = error.error_len() else {
                return after;
            };
            self.emit("\u{FFFD}", pieces, out);
            rest = &after[ill_formed..];
        }
    }

    /// Ends a run of byte tokens: text if all of it is UTF-8, else one U+FFFD a byte.
    fn close_run(&mut self, pieces: &Pieces, out: &mut String) {
        if self.held.is_empty() {
            return;
        }
        let run = std::mem::take(&mut self.held);
        match std::str::from_utf8(&run) {
            Ok(text) => self.emit(text, pieces, out),
            Err(_) => {
                let marks: String = std::iter::repeat_n(REPLACEMENT, run.len()).collect();
                self.emit(&marks, pieces, out);
            }
        }
        self.held = run;
        self.held.clear();
    }

    /// Gives the complete characters of an open run, keeping an unfinished one.
    fn release_run(&mut self, pieces: &Pieces, out: &mut String) {
        let run = std::mem::take(&mut self.held);
        let rest = self.emit_utf8(&run, pieces, out);
        self.held = rest.to_vec();
    }
}

impl Window {
    fn push(
        &mut self,
        id: u32,
        out: &mut String,
        decode: impl Fn(&[u32]) -> LibraryResult<String>,
    ) {
        self.ids.push(id);
        let waiting = self.ids.len() - self.read;
        if self.give(out, decode, waiting >= WINDOW_HELD_MAX) {
            self.ids.drain(..self.read);
            self.read = self.ids.len();
        }
    }

    fn flush(&mut self, out: &mut String, decode: impl Fn(&[u32]) -> LibraryResult<String>) {
        if self.read < self.ids.len() {
            self.give(out, decode, true);
        }
    }

    /// Appends what the window's text has over the text already given; false if it is to wait.
    fn give(
        &self,
        out: &mut String,
        decode: impl Fn(&[u32]) -> LibraryResult<String>,
        must: bool,
    ) -> bool {
        let decode = |ids: &[u32]| match ids {
            [] => String::new(),
            ids => decode(ids).unwrap_or_default(),
        };
        let all = decode(&self.ids);
        if all.ends_with(REPLACEMENT) && !must {
            return false;
        }
        let given = decode(&self.ids[..self.read]);
        match all.strip_prefix(&given) {
            Some("") | None if !must => false,
            Some(new) => {
                out.push_str(new);
                true
            }
            None => true,
        }
    }
}
