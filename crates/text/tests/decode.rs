//! Incremental decode equals the full decode, for every kind of tokenizer and any tokens.

#[path = "support/kinds.rs"]
mod kinds;

use kinds::Kind;
use mlxd_text::{Decoder, SpecialText, Tokenizer, TokenizerLimits};
use proptest::prelude::*;
use serde_json::Value;
use tokenizers::Tokenizer as Library;

fn ours(kind: &Kind) -> Tokenizer {
    Tokenizer::from_json(&kind.json, &Value::Null, &[], TokenizerLimits::default())
        .unwrap_or_else(|error| panic!("{}: {error}", kind.name))
}

fn library(kind: &Kind) -> Library {
    kind.json.parse().expect("a tokenizer")
}

/// The library's decode of all ids at once; some of its decoders cannot take none.
fn full(library: &Library, ids: &[u32], skip: bool) -> String {
    let shown = |id: &&u32| {
        let token = library.id_to_token(**id);
        let special = |t: &String| library.get_added_vocabulary().is_special_token(t);
        token.is_some_and(|token| !(skip && special(&token)))
    };
    if ids.iter().filter(shown).count() == 0 {
        return String::new();
    }
    library.decode(ids, skip).expect("a text")
}

fn incremental(tokenizer: &Tokenizer, ids: &[u32], specials: SpecialText) -> Vec<String> {
    let mut decoder = Decoder::with_specials(tokenizer, &[], specials);
    let mut texts: Vec<String> = ids.iter().map(|&id| decoder.push(id).to_owned()).collect();
    texts.push(decoder.finish());
    texts
}

/// Tokens of a text with random ones strewn in, so that runs that make sense are met too.
fn ids(size: u32) -> impl Strategy<Value = (Vec<u32>, String)> {
    // The first ids are specials and bytes where there are any; the last are added tokens.
    let id = prop_oneof![
        3 => 0..size + 3,
        3 => 0..size.min(262),
        1 => size.saturating_sub(4)..size + 1,
    ];
    let text = prop::collection::vec(
        prop_oneof!["[ a-z.,'?]{1,12}", "\\PC{1,4}", "日本語|é|🙂|👩‍👩‍👧|\n| {1,4}|worker|n't| '"],
        0..8,
    );
    (prop::collection::vec(id, 0..40), text.prop_map(|t| t.concat()))
}

/// Runs a property for every kind, sharing out the cases.
fn for_every_kind(
    cases: u32,
    property: impl Fn(&Kind, &Tokenizer, &Library, Vec<u32>) -> Result<(), TestCaseError>,
) {
    for kind in kinds::all() {
        let (tokenizer, library) = (ours(&kind), library(&kind));
        let size = tokenizer.vocab_size() as u32;
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let outcome =
            runner.run(&(ids(size), any::<prop::sample::Index>()), |((mut ids, text), at)| {
                let place = at.index(ids.len() + 1);
                let encoded = tokenizer.encode(&text, false).expect("ids");
                ids.splice(place..place, encoded);
                property(&kind, &tokenizer, &library, ids)
            });
        if let Err(error) = outcome {
            panic!("{}: {error}", kind.name);
        }
    }
}

#[test]
fn pushes_add_up_to_the_full_decode() {
    for_every_kind(400, |_, tokenizer, library, ids| {
        for (skip, specials) in [(true, SpecialText::Skip), (false, SpecialText::Keep)] {
            let expected = full(library, &ids, skip);
            let texts = incremental(tokenizer, &ids, specials);
            prop_assert_eq!(&texts.concat(), &expected, "ids {:?}", ids);
            prop_assert_eq!(&tokenizer.decode(&ids, skip), &expected);
        }
        Ok(())
    });
}

#[test]
fn what_was_given_is_never_taken_back() {
    for_every_kind(100, |_, tokenizer, library, ids| {
        let mut decoder = Decoder::new(tokenizer, &[]);
        let mut given = String::new();
        let all = full(library, &ids, true);
        for &id in &ids {
            decoder.push_into(id, &mut given);
            prop_assert!(all.starts_with(&given), "{given:?} is no start of {all:?}");
        }
        Ok(())
    });
}

#[test]
fn a_prompt_tail_is_the_context_and_not_the_text() {
    for_every_kind(200, |_, tokenizer, library, ids| {
        let (tail, rest) = ids.split_at(ids.len() / 2);
        let byte = |id: &u32| {
            let token = library.id_to_token(*id);
            token.is_some_and(|token| token.starts_with("<0x"))
        };
        let skipped =
            |id: &&u32| tokenizer.is_special(**id) || tokenizer.token_bytes(**id).is_none();
        let last = tail.iter().rev().find(|id| !skipped(id));
        // A run of bytes across the border reads otherwise as a whole.
        prop_assume!(!last.is_some_and(byte));
        let mut decoder = Decoder::new(tokenizer, tail);
        let mut text = String::new();
        for &id in rest {
            decoder.push_into(id, &mut text);
        }
        text.push_str(&decoder.finish());
        let all = full(library, &ids, true);
        let before = full(library, tail, true);
        let shown = before.trim_end_matches('\u{FFFD}');
        prop_assert!(all.ends_with(&text), "{text:?} is no end of {all:?}");
        prop_assert!(all.len() - text.len() <= before.len());
        prop_assert!(all.len() - text.len() >= shown.len(), "{text:?} repeats the prompt");
        Ok(())
    });
}

#[test]
fn a_leading_space_depends_on_the_prompt() {
    let tokenizer = ours(&kinds::named("byte fallback, stripped"));
    let ids = tokenizer.encode("worker", false).expect("ids");
    let text = |tail: &[u32]| {
        let mut decoder = Decoder::new(&tokenizer, tail);
        let mut text = String::new();
        for &id in &ids {
            decoder.push_into(id, &mut text);
        }
        text + &decoder.finish()
    };
    assert_eq!(text(&[]), "worker");
    assert_eq!(text(&tokenizer.encode("The", false).expect("ids")), " worker");
}

#[test]
fn a_newline_token_at_the_prompts_end_is_not_repeated() {
    let tokenizer = ours(&kinds::named("byte fallback"));
    let newline = tokenizer.token_id("<0x0A>").expect("a byte token");
    let smile: Vec<u32> = "🙂"
        .bytes()
        .map(|byte| tokenizer.token_id(&format!("<0x{byte:02X}>")).expect("a byte token"))
        .collect();
    let mut decoder = Decoder::new(&tokenizer, &[newline]);
    let texts: Vec<String> = smile.iter().map(|&id| decoder.push(id).to_owned()).collect();
    assert_eq!(texts.concat() + &decoder.finish(), "🙂");
}

#[test]
fn a_long_run_of_bytes_still_moves() {
    let tokenizer = ours(&kinds::named("byte fallback"));
    let text = "ភាសាខ្មែរ".repeat(40);
    let ids: Vec<u32> = text
        .bytes()
        .map(|byte| tokenizer.token_id(&format!("<0x{byte:02X}>")).expect("a byte token"))
        .collect();
    let texts = incremental(&tokenizer, &ids, SpecialText::Skip);
    assert_eq!(texts.concat(), text);
    let before_the_end: usize = texts[..ids.len()].iter().map(String::len).sum();
    assert!(before_the_end >= text.len() - 256, "{before_the_end} of {}", text.len());
}

#[test]
fn token_bytes_add_up_to_the_text() {
    let tokenizer = ours(&kinds::named("byte-level"));
    let text = "Grüße 日本語 🙂 isn't\n";
    let bytes: Vec<u8> = tokenizer
        .encode(text, false)
        .expect("ids")
        .into_iter()
        .flat_map(|id| tokenizer.token_bytes(id).expect("a token").to_vec())
        .collect();
    assert_eq!(bytes, text.as_bytes());
    let end = tokenizer.token_id("<|end|>").expect("a special token");
    assert_eq!(tokenizer.token_text(end).as_deref(), Some("<|end|>"));
    assert_eq!(tokenizer.special_ids(), [end]);
    assert_eq!(tokenizer.token_bytes(u32::MAX), None);
}
