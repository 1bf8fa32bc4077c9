//! A model folder for the scripted engine: its tokenizer speaks bytes, its template is ChatML,
//! its weights are one tensor of zeros.

use crate::script::Script;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Messages, one turn each, then the opening of the answer.
const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n\
    {{ message.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

const TURN_START: &str = "<|im_start|>";
const TURN_END: &str = "<|im_end|>";

/// A temporary model folder.
#[derive(Debug)]
pub struct ModelFolder {
    folder: TempDir,
}

impl ModelFolder {
    /// A folder that loads with this script.
    pub fn new(script: &Script) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let this = Self { folder };
        this.set_script(script);
        this.write("config.json", &config(script));
        this.write("tokenizer.json", &tokenizer(script.clock));
        this.write("tokenizer_config.json", &tokenizer_config());
        let weights = this.path().join("model.safetensors");
        std::fs::write(weights, safetensors()).expect("the folder can be written");
        this
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The next worker that loads this folder follows another script.
    pub fn set_script(&self, script: &Script) {
        let file = self.path().join(Script::FILE);
        std::fs::write(file, script.to_json()).expect("the folder can be written");
    }

    /// The worker that has this folder loaded, or the next one, fails as the fault at this place
    /// of its script says, which must be one that is [asked for](crate::When::Asked).
    pub fn ask_fault(&self, place: usize) {
        std::fs::write(asked_file(self.path(), place), "").expect("the folder can be written");
    }

    /// A file of it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn write(&self, name: &str, value: &Value) {
        std::fs::write(self.file(name), value.to_string()).expect("the folder can be written");
    }
}

/// Asks for the fault at this place of the script, while it is there.
pub(crate) fn asked_file(folder: &Path, place: usize) -> PathBuf {
    folder.join(format!("scripted.asked-{place}"))
}

/// The numbers of a very small Llama, so that a memory plan can be made for it.
fn config(script: &Script) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": script.vocab_size,
        "max_position_embeddings": script.context_tokens,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float32",
        "eos_token_id": Script::END,
    })
}

/// A byte-level BPE without merges: token `b` is byte `b`, then the two turn marks, then, if
/// wanted, the clock's words.
fn tokenizer(clock: bool) -> Value {
    let mut vocab: serde_json::Map<String, Value> =
        (0..=255u8).map(|byte| (byte_char(byte).to_string(), json!(byte))).collect();
    if clock {
        // The library numbers added tokens after the others, except those that it finds here.
        vocab.insert(TURN_START.into(), json!(Script::TURN_START));
        vocab.insert(TURN_END.into(), json!(Script::END));
        for number in 0..Script::CLOCK_WORDS {
            vocab.insert(Script::clock_word(number), json!(Script::CLOCK_FIRST + number));
        }
    }
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        })
    };
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [
            special(Script::TURN_START, TURN_START),
            special(Script::END, TURN_END),
        ],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [],
        },
    })
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "chat_template": TEMPLATE,
    })
}

/// The character that stands for a byte in a byte-level vocabulary: printable ones of Latin-1
/// for themselves, the others from U+0100 on, as GPT-2 laid it down.
fn byte_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&lower| !printable(lower)).count() as u32;
    char::from_u32(0x100 + rank).expect("U+0100 to U+0143 are characters")
}

/// A file with one tensor of four zeros.
fn safetensors() -> Vec<u8> {
    let header = json!({
        "model.embed_tokens.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    });
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&[0; 16]);
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::Tokenizer;

    #[test]
    fn its_tokenizer_speaks_bytes() {
        let folder = ModelFolder::new(&Script::default());
        let tokenizer = Tokenizer::from_file(folder.file("tokenizer.json")).unwrap();
        let text = "Grüße, 世界 ~\u{7f}\n\u{ad}";
        let ids = tokenizer.encode(text, false).unwrap().get_ids().to_vec();
        let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
        assert_eq!(ids, bytes);
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        let turn = tokenizer.encode("<|im_start|>a<|im_end|>", false).unwrap();
        assert_eq!(turn.get_ids(), [Script::TURN_START, 97, Script::END]);
    }
    #[test]
    fn its_tokenizer_writes_the_clocks_words() {
        let folder = ModelFolder::new(&Script::of_clock());
        let tokenizer = Tokenizer::from_file(folder.file("tokenizer.json")).unwrap();
        let last = Script::CLOCK_FIRST + Script::CLOCK_WORDS - 1;
        assert_eq!(tokenizer.decode(&[Script::CLOCK_FIRST, last, 97], true).unwrap(), "aaa777a");
        let turn = tokenizer.encode("<|im_start|>aaa<|im_end|>", false).unwrap();
        assert_eq!(turn.get_ids(), [Script::TURN_START, 97, 97, 97, Script::END]);
    }
}
