//! Stop strings: the same cut whatever the chunks, and never a part of one given out.

#[path = "support/kinds.rs"]
mod kinds;

use mlxd_text::{Decoder, Detokeniser, StopHit, StopMatcher, Tokenizer, TokenizerLimits};
use proptest::prelude::*;
use serde_json::Value;

/// The plain definition: the stop that ends first, of those the one that begins first.
fn naive(stops: &[String], text: &str) -> (String, Option<usize>) {
    let found = stops
        .iter()
        .enumerate()
        .filter(|(_, stop)| !stop.is_empty())
        .filter_map(|(index, stop)| text.find(&stop[..]).map(|at| (at + stop.len(), at, index)))
        .min();
    match found {
        Some((_, at, index)) => (text[..at].to_owned(), Some(index)),
        None => (text.to_owned(), None),
    }
}

/// Chunks of the text, cut at these places.
fn chunks(text: &str, places: &[prop::sample::Index]) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    let mut cuts: Vec<usize> = places.iter().map(|p| p.index(letters.len() + 1)).collect();
    cuts.extend([0, letters.len()]);
    cuts.sort_unstable();
    let between = cuts.windows(2);
    between.map(|cut| letters[cut[0]..cut[1]].iter().collect()).collect()
}

fn few_letters() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop_oneof![Just("a"), Just("b"), Just("é"), Just("日"), Just("🙂")],
        0..30,
    )
    .prop_map(|letters| letters.concat())
}

fn stops() -> impl Strategy<Value = Vec<String>> {
    let stop = prop::collection::vec(
        prop_oneof![Just("a"), Just("b"), Just("é"), Just("日"), Just("🙂")],
        0..6,
    );
    prop::collection::vec(stop.prop_map(|letters| letters.concat()), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_search_of_the_whole_text(
        text in few_letters(),
        stops in stops(),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let (expected, hit) = naive(&stops, &text);
        let mut matcher = StopMatcher::new(&stops);
        let mut out = String::new();
        for chunk in chunks(&text, &places) {
            matcher.push(&chunk, &mut out);
            // Nothing is given that the end result takes back.
            prop_assert!(expected.starts_with(&out), "gave {out:?} of {expected:?}");
        }
        matcher.flush(&mut out);
        // Of equal stop strings the first in the list is reported.
        prop_assert_eq!((out, matcher.hit()), (expected, hit));
    }

    #[test]
    fn holds_back_no_more_than_it_must(text in few_letters(), stops in stops()) {
        let mut matcher = StopMatcher::new(&stops);
        let mut out = String::new();
        if matcher.push(&text, &mut out).is_some() {
            return Ok(());
        }
        let held = &text[out.len()..];
        let begins = |stop: &String| !stop.is_empty() && stop.starts_with(held);
        prop_assert!(held.is_empty() || stops.iter().any(begins), "held {held:?}");
    }
}

fn byte_level() -> Tokenizer {
    let json = kinds::named("byte-level").json;
    Tokenizer::from_json(&json, &Value::Null, &[], TokenizerLimits::default()).expect("a tokenizer")
}

/// All text of a detokeniser, and where it stopped.
fn run(tokenizer: &Tokenizer, ids: &[u32], stop: &str) -> (String, Option<StopHit>) {
    let decoder = Decoder::new(tokenizer, &[]);
    let mut detokeniser = Detokeniser::new(decoder, StopMatcher::new(&[stop.to_owned()]));
    let mut text = String::new();
    for &id in ids {
        text.push_str(detokeniser.push(id).text);
    }
    let last = detokeniser.finish();
    text.push_str(last.text);
    (text, last.stop)
}

#[test]
fn a_stop_across_tokens_is_found_and_cut() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("Answer: 42 🙂🙂 done", false).expect("ids");
    let (text, stop) = run(&tokenizer, &ids, "🙂🙂 d");
    assert_eq!(text, "Answer: 42 ");
    let hit = stop.expect("a stop");
    assert_eq!(hit.index, 0);
    // The token that completes it is counted, later ones are not.
    let complete = (1..=ids.len())
        .find(|&count| tokenizer.decode(&ids[..count], true).contains("🙂🙂 d"))
        .expect("a place");
    assert_eq!(hit.tokens, complete);
}

#[test]
fn an_unfinished_end_is_shown() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("ok 🦊", false).expect("ids");
    let (text, stop) = run(&tokenizer, &ids[..ids.len() - 1], "never");
    assert_eq!((&text[..], stop), (&tokenizer.decode(&ids[..ids.len() - 1], true)[..], None));
    assert!(text.ends_with('\u{FFFD}'), "{text:?}");
}

#[test]
fn replay_rebuilds_the_state() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("one tw th 🙂 two three", false).expect("ids");
    let decoder = || Decoder::new(&tokenizer, &[]);
    let new = || Detokeniser::new(decoder(), StopMatcher::new(&["two".into()]));
    let mut unbroken = new();
    for cut in 0..ids.len() {
        // A new one is brought to the same place, its text dropped: the client has it.
        let mut replayed = new();
        for &id in &ids[..cut] {
            replayed.push(id);
        }
        assert_eq!(unbroken.push(ids[cut]), replayed.push(ids[cut]));
        assert_eq!(unbroken.token_count(), replayed.token_count());
    }
    assert!(unbroken.finish().stop.is_some());
}
