//! Chat templates: a conversation in, the prompt's text out, as `transformers` would render it.
//!
//! A template is a program that came with a model, so it runs within [`TemplateLimits`]. The
//! pieces: [`source`] finds and prepares the templates of a model folder, [`environment`] is the
//! Jinja dialect, [`python`] writes values as Python does, [`date`] is `strftime_now`,
//! [`messages`] brings an API's messages into the form that templates expect.

mod date;
mod environment;
mod messages;
mod methods;
mod python;
mod source;

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use serde_json::{Map, Value};

use crate::error::TextError;
use crate::tokenizer::SpecialTokens;
use environment::Compiled;

/// Limits on templates and what they write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateLimits {
    /// Longest template, in bytes.
    pub source_bytes_max: usize,
    /// Longest prompt text, in bytes.
    pub output_bytes_max: usize,
    /// Most instructions of the template engine for one rendering; a long conversation takes
    /// some hundreds a message.
    pub instructions_max: u64,
    /// Deepest nesting of calls and includes.
    pub recursion_max: usize,
}

impl Default for TemplateLimits {
    fn default() -> Self {
        TemplateLimits {
            source_bytes_max: 1024 * 1024,
            output_bytes_max: 32 * 1024 * 1024,
            instructions_max: 20_000_000,
            recursion_max: 100,
        }
    }
}

/// What a template is rendered with.
#[derive(Debug, Clone, Copy)]
pub struct RenderInput<'a> {
    /// The conversation: objects with `role`, `content` and whatever else the template reads.
    pub messages: &'a [Value],
    /// Tools as a list of JSON schemas. An empty list counts as none.
    pub tools: Option<&'a Value>,
    /// Documents for retrieval, a list of objects.
    pub documents: Option<&'a Value>,
    /// Ask for the header that starts the assistant's answer.
    pub add_generation_prompt: bool,
    /// End the prompt inside the last message so that the model continues it. Excludes
    /// `add_generation_prompt`.
    pub continue_final_message: bool,
    /// Further variables, such as `enable_thinking`. They go before special tokens, never before
    /// the fields above.
    pub extra: Option<&'a Map<String, Value>>,
    /// A named template instead of the one that suits.
    pub template: Option<&'a str>,
    /// The time that `strftime_now` tells.
    pub now: SystemTime,
}

impl Default for RenderInput<'_> {
    fn default() -> Self {
        RenderInput {
            messages: &[],
            tools: None,
            documents: None,
            add_generation_prompt: false,
            continue_final_message: false,
            extra: None,
            template: None,
            now: SystemTime::now(),
        }
    }
}

/// Which forms of `content` a template reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentShape {
    /// A string only.
    Text,
    /// A list of parts only.
    Parts,
    /// Either.
    Both,
}

/// The chat templates of a model. Cloning shares them.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    templates: Vec<Named>,
    specials: SpecialTokens,
    limits: TemplateLimits,
}

#[derive(Debug)]
struct Named {
    name: String,
    compiled: Compiled,
    shape: OnceLock<ContentShape>,
}

impl ChatTemplate {
    /// Loads a model folder's templates with the default limits; `None` if it has none.
    ///
    /// Where several files hold a template, `chat_template.jinja` and
    /// `additional_chat_templates/*.jinja` go before `chat_template.json`, and that before
    /// `chat_template` in `tokenizer_config.json`.
    pub fn load(folder: &Path) -> Result<Option<ChatTemplate>, TextError> {
        ChatTemplate::load_within(folder, TemplateLimits::default())
    }

    /// As [`ChatTemplate::load`], with limits.
    pub fn load_within(
        folder: &Path,
        limits: TemplateLimits,
    ) -> Result<Option<ChatTemplate>, TextError> {
        let config = crate::tokenizer::tokenizer_config(folder)?;
        let sources = source::find(folder, &config, limits)?;
        if sources.is_empty() {
            return Ok(None);
        }
        let specials = SpecialTokens::from_config(&config);
        ChatTemplate::from_sources(sources, specials, limits).map(Some)
    }

    /// Compiles templates given as (name, source).
    pub fn from_sources(
        sources: Vec<(String, String)>,
        specials: SpecialTokens,
        limits: TemplateLimits,
    ) -> Result<ChatTemplate, TextError> {
        let mut templates = Vec::with_capacity(sources.len());
        for (name, source) in sources {
            templates.push(Named {
                compiled: Compiled::new(&source, limits)?,
                shape: OnceLock::new(),
                name,
            });
        }
        Ok(ChatTemplate { inner: Arc::new(Inner { templates, specials, limits }) })
    }

    /// The names of the templates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inner.templates.iter().map(|named| &named.name[..])
    }

    /// Whether the template that would be used reads this variable or message field at all.
    pub fn mentions(&self, input: &RenderInput<'_>, word: &str) -> Result<bool, TextError> {
        Ok(self.choose(input)?.compiled.source().contains(word))
    }

    /// Renders a conversation as an API delivers it: its messages are first brought into the
    /// form that the template reads.
    ///
    /// - `content` as a list of text parts becomes one string, the parts on lines of their own,
    ///   for a template that reads strings only; a string becomes a list of one text part for a
    ///   template that reads lists only. The template is tried out once to know which.
    /// - A tool call's `arguments`, a JSON text in the API, become an object.
    /// - The role `developer` becomes `system` unless the template knows it.
    pub fn render(&self, input: &RenderInput<'_>) -> Result<String, TextError> {
        let named = self.choose(input)?;
        let shape = self.shape_of(named);
        let knows_developer = named.compiled.source().contains("developer");
        let messages = messages::normalise(input.messages, shape, knows_developer)?;
        self.run(named, input, messages)
    }

    /// Renders the messages as they are, which is what `apply_chat_template` does: fields that
    /// are null are dropped and a message's reasoning is found under each of its usual names.
    pub fn render_as_given(&self, input: &RenderInput<'_>) -> Result<String, TextError> {
        self.run(self.choose(input)?, input, input.messages.to_vec())
    }

    /// Which forms of `content` the template reads that would be used for this input.
    pub fn content_shape(&self, input: &RenderInput<'_>) -> Result<ContentShape, TextError> {
        Ok(self.shape_of(self.choose(input)?))
    }

    fn choose(&self, input: &RenderInput<'_>) -> Result<&Named, TextError> {
        let find = |name: &str| self.inner.templates.iter().find(|t| t.name == name);
        let wanted = match input.template {
            Some(name) => find(name),
            None => given(input.tools)
                .and_then(|_| find("tool_use"))
                .or_else(|| find("default"))
                .or_else(|| match &self.inner.templates[..] {
                    [only] => Some(only),
                    _ => None,
                }),
        };
        wanted.ok_or_else(|| TextError::NoSuchTemplate {
            name: input.template.unwrap_or("default").to_owned(),
            available: self.names().map(str::to_owned).collect(),
        })
    }

    fn run(
        &self,
        named: &Named,
        input: &RenderInput<'_>,
        messages: Vec<Value>,
    ) -> Result<String, TextError> {
        let mut messages = messages::complete(messages)?;
        let continued = match input.continue_final_message {
            true if input.add_generation_prompt => {
                return Err(TextError::Template(
                    "continue_final_message and add_generation_prompt exclude each other".into(),
                ));
            }
            true => Some(messages::mark_end(&mut messages)?),
            false => None,
        };
        let context = self.context(input, &messages);
        let text = named.compiled.render(context, self.inner.limits)?;
        match continued {
            Some(last) => messages::cut_at_mark(text, &last),
            None => Ok(text),
        }
    }

    /// The template's variables: special tokens, then what the caller adds, then the input.
    fn context(&self, input: &RenderInput<'_>, messages: &[Value]) -> minijinja::Value {
        let specials = self.inner.specials.iter();
        let specials = specials.map(|(name, text)| (name, minijinja::Value::from(text)));
        let extra = input.extra.into_iter().flatten();
        let extra = extra.map(|(name, value)| (&name[..], python::from_json(value)));
        let of = |value: Option<&Value>| match value {
            Some(value) => python::from_json(value),
            None => minijinja::Value::from(()),
        };
        let messages: minijinja::Value = messages.iter().map(python::from_json).collect();
        let own = [
            ("messages", messages),
            ("tools", of(given(input.tools))),
            ("documents", of(input.documents)),
            ("add_generation_prompt", input.add_generation_prompt.into()),
            ("strftime_now", date::strftime_now(input.now)),
        ];
        minijinja::Value::from_pairs(specials.chain(extra).chain(own))
    }

    fn shape_of(&self, named: &Named) -> ContentShape {
        *named.shape.get_or_init(|| {
            messages::probe(|messages| {
                let input =
                    RenderInput { messages, add_generation_prompt: true, ..RenderInput::default() };
                self.run(named, &input, messages.to_vec()).ok()
            })
        })
    }
}

/// A list that is there and not empty.
fn given(list: Option<&Value>) -> Option<&Value> {
    list.filter(|value| match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        _ => true,
    })
}
