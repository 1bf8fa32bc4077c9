//! What a scripted engine does: its vocabulary, its answer, its pace and its faults.

use mlxd_protocol::{LoadFaultKind, ModelInfo, TokenId};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A scripted engine's plan, as `scripted.json` in the model folder or in [`Script::VARIABLE`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Prompt and answer together.
    pub context_tokens: u32,
    /// Steps that may be in flight.
    pub depth: usize,
    /// Microseconds a decode step takes, whatever its rows.
    pub step_us: u64,
    /// Microseconds a prompt token takes.
    pub prefill_token_us: u64,
    /// Milliseconds that loading takes.
    pub load_ms: u64,
    /// Reports of load progress.
    pub load_steps: u64,
    /// MiB to allocate and touch while loading.
    pub allocate_mib: usize,
    /// The answer's bytes, one token each, then [`Script::END`]. Without it every (prompt, seed)
    /// has an endless answer of its own made of lower-case letters and spaces.
    pub answer: Option<String>,
    /// Every token tells when it was made, as [`Script::of_clock`] has it. Goes before `answer`.
    pub clock: bool,
    /// Say [`Script::END`] after so many tokens.
    pub end_after_tokens: Option<u32>,
    /// Loading fails like this.
    pub load_failure: Option<LoadFailure>,
    /// What goes wrong, and when.
    pub faults: Vec<Fault>,
}

/// Letters of the clock's words.
const CLOCK_LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A load that ends in a typed error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadFailure {
    /// Whose fault.
    pub kind: LoadFaultKind,
    /// What the worker says.
    pub message: String,
}

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When.
    pub when: When,
    /// How.
    pub how: How,
    /// How often over all incarnations that load the folder; without it every time. The count is
    /// kept in the model folder.
    #[serde(default)]
    pub times_max: Option<u32>,
}

/// When a fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Half-way through loading.
    Load,
    /// At the first chunk of any prompt.
    Prefill,
    /// In the step after so many tokens were given out, over all sequences.
    Tokens(u64),
    /// At the first chunk of a prompt that holds this token.
    PromptToken(TokenId),
    /// At the next step or chunk after [`ModelFolder::ask_fault`](crate::ModelFolder::ask_fault).
    Asked,
}

/// How a process fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// SIGKILL to itself.
    Kill,
    /// SIGSEGV to itself.
    Segv,
    /// `abort`, as MLX does on a Metal error.
    Abort,
    /// The engine's thread never comes back.
    Hang,
    /// The engine reports a fault. In loading: a fault of kind `Engine`.
    Fault,
    /// A Rust panic.
    Panic,
    /// An allocation that the system refuses: the process takes away its own address space first.
    OutOfMemory,
    /// Takes so many MiB that nobody promised it, and goes on if it is let.
    Outgrow(usize),
    /// `exit` with this code.
    Exit(i32),
}

/// A plan that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the script in {place} cannot be read: {reason}")]
pub struct ScriptError {
    /// Where it was looked for.
    pub place: String,
    /// What was wrong.
    pub reason: String,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            vocab_size: Self::END + 2,
            context_tokens: 4096,
            depth: 2,
            step_us: 0,
            prefill_token_us: 0,
            load_ms: 0,
            load_steps: 4,
            allocate_mib: 0,
            answer: None,
            clock: false,
            end_after_tokens: None,
            load_failure: None,
            faults: Vec::new(),
        }
    }
}

impl Script {
    /// The environment variable that holds a plan; it wins over the folder's file. Not named
    /// `MLXD_…`: those are the front's, which refuses one that it does not know.
    pub const VARIABLE: &'static str = "SCRIPTED_PLAN";
    /// The file in a model folder that holds a plan.
    pub const FILE: &'static str = "scripted.json";
    /// Opens a turn. Ids below are bytes.
    pub const TURN_START: TokenId = 256;
    /// Closes a turn: the answer's stop token.
    pub const END: TokenId = 257;
    /// Nanoseconds that a word of the clock stands for.
    pub const CLOCK_WORD_NS: u64 = 10_000;
    /// Letters of a word of the clock.
    pub const CLOCK_WORD_BYTES: usize = 3;
    /// Words of the clock. After the last comes the first, a third of a second later.
    pub const CLOCK_WORDS: u32 = 32 * 32 * 32;
    /// The token of the clock's first word.
    pub const CLOCK_FIRST: TokenId = Self::END + 1;

    /// A plan whose tokens tell when they were made: token [`CLOCK_FIRST`](Self::CLOCK_FIRST)` + n`
    /// was made in the `n`th [`CLOCK_WORD_NS`](Self::CLOCK_WORD_NS) of a round.
    pub fn of_clock() -> Self {
        let vocab_size = Self::CLOCK_FIRST + Self::CLOCK_WORDS;
        Self { clock: true, vocab_size, ..Self::default() }
    }

    /// The token of a moment on [`mlxd_ring::monotonic_ns`], which every process reads alike.
    pub fn clock_token(now_ns: u64) -> TokenId {
        let word = now_ns / Self::CLOCK_WORD_NS % u64::from(Self::CLOCK_WORDS);
        Self::CLOCK_FIRST + word as u32
    }

    /// How the tokenizer writes the clock's word `number`: none of its letters needs an escape in
    /// JSON.
    pub fn clock_word(number: u32) -> String {
        let letter = |shift: u32| char::from(CLOCK_LETTERS[(number >> shift) as usize % 32]);
        [letter(10), letter(5), letter(0)].iter().collect()
    }

    /// How long before `now_ns` a word was made. Up to [`CLOCK_WORD_NS`](Self::CLOCK_WORD_NS) too
    /// much, and too little by whole rounds for one that is older than a round. `None`: not a word.
    pub fn clock_age_ns(word: &[u8], now_ns: u64) -> Option<u64> {
        if word.len() != Self::CLOCK_WORD_BYTES {
            return None;
        }
        let mut number = 0;
        for byte in word {
            let letter = CLOCK_LETTERS.iter().position(|known| known == byte)?;
            number = number * 32 + letter as u64;
        }
        let round_ns = u64::from(Self::CLOCK_WORDS) * Self::CLOCK_WORD_NS;
        Some((now_ns % round_ns + round_ns - number * Self::CLOCK_WORD_NS) % round_ns)
    }

    /// The plan for a model folder: the variable's, else the folder's, else the default.
    pub fn find(folder: &Path) -> Result<Self, ScriptError> {
        if let Some(plan) = std::env::var_os(Self::VARIABLE) {
            return Self::parse(Self::VARIABLE, &plan.to_string_lossy());
        }
        let file = folder.join(Self::FILE);
        match std::fs::read_to_string(&file) {
            Ok(plan) => Self::parse(&file.to_string_lossy(), &plan),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(ScriptError {
                place: file.to_string_lossy().into_owned(),
                reason: error.to_string(),
            }),
        }
    }

    fn parse(place: &str, plan: &str) -> Result<Self, ScriptError> {
        serde_json::from_str(plan)
            .map_err(|error| ScriptError { place: place.to_owned(), reason: error.to_string() })
    }

    /// As JSON, for the file or the variable.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a script has no map keys that are not text")
    }

    /// With one more fault, every time.
    pub fn with_fault(mut self, when: When, how: How) -> Self {
        self.faults.push(Fault { when, how, times_max: None });
        self
    }

    /// With one more fault, once over all incarnations.
    pub fn with_fault_once(mut self, when: When, how: How) -> Self {
        self.faults.push(Fault { when, how, times_max: Some(1) });
        self
    }

    /// The token at `index` of the answer to `prompt` with `seed`: what an engine with this plan
    /// gives, in any incarnation.
    pub fn token(&self, prompt: &[TokenId], seed: u64, index: u32) -> TokenId {
        self.token_of(digest(prompt, seed), index)
    }

    /// The first `count` tokens of the answer.
    pub fn tokens(&self, prompt: &[TokenId], seed: u64, count: u32) -> Vec<TokenId> {
        let digest = digest(prompt, seed);
        (0..count).map(|index| self.token_of(digest, index)).collect()
    }

    /// The token at `index` of the answer that `digest` stands for.
    pub(crate) fn token_of(&self, digest: u64, index: u32) -> TokenId {
        if self.end_after_tokens.is_some_and(|end| index >= end) {
            return Self::END;
        }
        if let Some(answer) = &self.answer {
            let byte = answer.as_bytes().get(index as usize);
            return byte.map_or(Self::END, |&byte| TokenId::from(byte));
        }
        let draw = mix(digest ^ u64::from(index)) % 32;
        // Six of 32 are spaces.
        let byte = if draw < 26 { b'a' + draw as u8 } else { b' ' };
        TokenId::from(byte) % self.vocab_size
    }

    /// What a model with this plan calls itself.
    pub fn info(&self) -> ModelInfo {
        ModelInfo {
            architecture: "scripted".into(),
            vocab_size: self.vocab_size,
            context_tokens: self.context_tokens,
            parameters: 0,
            weight_bytes: (self.allocate_mib as u64) << 20,
            kv_bytes_per_token: 0,
            quantization: "none".into(),
            backend: "scripted".into(),
            mlx: None,
            load_ms: self.load_ms,
        }
    }
}

/// Stands for a prompt and a seed.
pub(crate) fn digest(prompt: &[TokenId], seed: u64) -> u64 {
    let start = mix(seed ^ 0x6d6c_7864);
    prompt.iter().fold(start, |hash, &token| mix(hash ^ u64::from(token)))
}

/// The finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Script::find(folder.path()).unwrap(), Script::default());
        let script = Script {
            answer: Some("Grüße".into()),
            load_failure: Some(LoadFailure {
                kind: LoadFaultKind::Corrupt,
                message: "tensor x".into(),
            }),
            ..Script::default()
        }
        .with_fault_once(When::Tokens(7), How::Kill)
        .with_fault(When::Load, How::Exit(9));
        std::fs::write(folder.path().join(Script::FILE), script.to_json()).unwrap();
        assert_eq!(Script::find(folder.path()).unwrap(), script);
        std::fs::write(folder.path().join(Script::FILE), "{\"stepus\": 1}").unwrap();
        let error = Script::find(folder.path()).unwrap_err().to_string();
        assert!(error.contains("stepus"), "{error}");
    }

    #[test]
    fn answers_differ_by_prompt_and_by_seed_and_repeat() {
        let script = Script::default();
        let answer = script.tokens(&[1, 2, 3], 0, 64);
        assert_eq!(answer, script.tokens(&[1, 2, 3], 0, 64));
        assert_ne!(answer, script.tokens(&[1, 2, 4], 0, 64));
        assert_ne!(answer, script.tokens(&[1, 2, 3], 1, 64));
        assert_eq!(script.token(&[1, 2, 3], 0, 63), answer[63]);
        assert!(answer.iter().all(|&token| token < 256));
    }

    #[test]
    fn a_clocks_word_tells_its_age() {
        let made = 77_777 * Script::CLOCK_WORD_NS;
        let number = Script::clock_token(made) - Script::CLOCK_FIRST;
        let word = Script::clock_word(number);
        for age in [0, 1, 150_000, 3_000_000, 320_000_000] {
            assert_eq!(Script::clock_age_ns(word.as_bytes(), made + age), Some(age));
        }
        assert_eq!(Script::clock_age_ns(b"aa", made), None);
        assert_eq!(Script::clock_age_ns(b"a!a", made), None);
    }

    #[test]
    fn a_written_answer_is_said_and_ended() {
        let script = Script { answer: Some("hé".into()), ..Script::default() };
        let expected = [u32::from(b'h'), 0xc3, 0xa9, Script::END, Script::END];
        assert_eq!(script.tokens(&[1], 5, 5), expected);
    }
}
