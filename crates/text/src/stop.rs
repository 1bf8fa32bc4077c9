//! Stop strings over streamed text.
//!
//! Text that might be the beginning of a stop string is held back until it is known not to be.
//! The result does not depend on how the text is cut into pushes: the stop string that is
//! complete first wins, and of those that are complete at the same byte the longest.

/// Looks for stop strings in a text that arrives in pieces.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<Automaton>,
    /// The end of the text so far that may be the beginning of a stop string.
    held: String,
    hit: Option<usize>,
}

/// Knuth, Morris and Pratt's automaton for one stop string.
#[derive(Debug, Clone)]
struct Automaton {
    index: usize,
    pattern: Box<[u8]>,
    /// For each prefix of the pattern, the length of its longest proper border.
    borders: Box<[usize]>,
    /// Length of the longest prefix of the pattern that ends the text so far.
    matched: usize,
}

impl Automaton {
    fn new(index: usize, pattern: &str) -> Automaton {
        let pattern: Box<[u8]> = pattern.as_bytes().into();
        let mut borders = vec![0; pattern.len()];
        let mut border = 0;
        for at in 1..pattern.len() {
            while border > 0 && pattern[at] != pattern[border] {
                border = borders[border - 1];
            }
            if pattern[at] == pattern[border] {
                border += 1;
            }
            borders[at] = border;
        }
        Automaton { index, pattern, borders: borders.into(), matched: 0 }
    }

    /// Takes one byte; true if the pattern is now complete.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.pattern[self.matched] != byte {
            self.matched = self.borders[self.matched - 1];
        }
        if self.pattern[self.matched] == byte {
            self.matched += 1;
        }
        self.matched == self.pattern.len()
    }
}

impl StopMatcher {
    /// A matcher for these stop strings. Empty ones never match.
    pub fn new(stops: &[String]) -> StopMatcher {
        let stops = stops
            .iter()
            .enumerate()
            .filter(|(_, stop)| !stop.is_empty())
            .map(|(index, stop)| Automaton::new(index, stop))
            .collect();
        StopMatcher { stops, held: String::new(), hit: None }
    }

    /// Takes the next text and appends to `out` what is certain to come before any stop string.
    ///
    /// Returns the index of the stop string once one is complete; from then on all text is
    /// dropped and every push returns that index again.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        if self.hit.is_some() {
            return self.hit;
        }
        if self.stops.is_empty() {
            out.push_str(text);
            return None;
        }
        for (at, &byte) in text.as_bytes().iter().enumerate() {
            let mut longest: Option<&Automaton> = None;
            for stop in &mut self.stops {
                if stop.step(byte) && longest.is_none_or(|l| stop.pattern.len() > l.pattern.len()) {
                    longest = Some(stop);
                }
            }
            if let Some(stop) = longest {
                self.hit = Some(stop.index);
                let before = self.held.len() + at + 1 - stop.pattern.len();
                self.give(text, before, out);
                self.held.clear();
                return self.hit;
            }
        }
        // A stop string begins with a character, so what may be one does too.
        let may_begin = self.stops.iter().map(|stop| stop.matched).max();
        let sure = self.held.len() + text.len() - may_begin.unwrap_or(0);
        let kept_from_text = sure.saturating_sub(self.held.len());
        self.give(text, sure, out);
        self.held.drain(..sure.min(self.held.len()));
        self.held.push_str(&text[kept_from_text..]);
        None
    }

    /// Ends the text: appends what was held back, as no stop string came of it.
    pub fn flush(&mut self, out: &mut String) {
        if self.hit.is_none() {
            out.push_str(&self.held);
        }
        self.held.clear();
        for stop in &mut self.stops {
            stop.matched = 0;
        }
    }

    /// Index of the stop string that was found.
    pub fn hit(&self) -> Option<usize> {
        self.hit
    }

    /// Appends the first `count` bytes of the held text followed by `text`.
    fn give(&self, text: &str, count: usize, out: &mut String) {
        match count.checked_sub(self.held.len()) {
            Some(from_text) => {
                out.push_str(&self.held);
                out.push_str(&text[..from_text]);
            }
            None => out.push_str(&self.held[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(stops: &[&str], chunks: &[&str]) -> (String, Option<usize>) {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut out = String::new();
        for chunk in chunks {
            matcher.push(chunk, &mut out);
        }
        matcher.flush(&mut out);
        (out, matcher.hit())
    }

    #[test]
    fn a_stop_across_chunks_is_cut_whole() {
        assert_eq!(stream(&["\nUser:"], &["Hi.\nU", "se", "r: no"]), ("Hi.".into(), Some(0)));
    }

    #[test]
    fn a_false_start_is_given_back() {
        assert_eq!(stream(&["END"], &["E", "N", "ough"]), ("ENough".into(), None));
        assert_eq!(stream(&["END"], &["the E", "N"]), ("the EN".into(), None));
    }

    #[test]
    fn the_first_to_be_complete_wins() {
        assert_eq!(stream(&["bcd", "c"], &["abcd"]), ("ab".into(), Some(1)));
        assert_eq!(stream(&["c", "abc"], &["xabcd"]), ("x".into(), Some(1)));
    }

    #[test]
    fn an_empty_stop_never_matches() {
        assert_eq!(stream(&["", "b"], &["abc"]), ("a".into(), Some(1)));
    }

    #[test]
    fn nothing_follows_a_hit() {
        assert_eq!(stream(&["é"], &["caf", "é", " au lait"]), ("caf".into(), Some(0)));
    }
}
