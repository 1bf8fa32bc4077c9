//! The Jinja dialect of chat templates: the environment that `transformers` sets up, on minijinja.
//!
//! Known differences from Python, none met in a published template so far: `text % values` does
//! not format, and a float that Python writes with an exponent is written without one by `~`. A
//! template can still build a very large string in a variable within its instructions; what it
//! writes is bounded.

use std::fmt;
use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value};

use super::source::prepared;
use super::{TemplateLimits, methods, python};
use crate::error::TextError;

const NAME: &str = "chat_template";

/// A template ready to run.
pub(super) struct Compiled {
    environment: Environment<'static>,
    source: String,
}

impl fmt::Debug for Compiled {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Compiled")
            .field("source_bytes", &self.source.len())
            .finish_non_exhaustive()
    }
}

/// What `raise_exception` was called with; found again as the source of the engine's error.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl Compiled {
    /// Parses a template.
    pub(super) fn new(source: &str, limits: TemplateLimits) -> Result<Compiled, TextError> {
        if source.len() > limits.source_bytes_max {
            return Err(TextError::TemplateLimit {
                what: "bytes of the template",
                limit: limits.source_bytes_max as u64,
            });
        }
        let mut environment = dialect().map_err(|error| TextError::Template(describe(&error)))?;
        environment.set_fuel(Some(limits.instructions_max));
        environment.set_recursion_limit(limits.recursion_max);
        environment
            .add_template_owned(NAME, prepared(source))
            .map_err(|error| TextError::Template(describe(&error)))?;
        Ok(Compiled { environment, source: source.to_owned() })
    }

    /// The template as the model's author wrote it.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Runs the template.
    pub(super) fn render(
        &self,
        context: Value,
        limits: TemplateLimits,
    ) -> Result<String, TextError> {
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| TextError::Template(describe(&error)))?;
        let mut out =
            Bounded { bytes: Vec::new(), bytes_max: limits.output_bytes_max, full: false };
        let result = template.render_captured_to(context, &mut out).map(|_| ());
        if out.full {
            return Err(TextError::TemplateLimit {
                what: "bytes of output",
                limit: limits.output_bytes_max as u64,
            });
        }
        result.map_err(|error| explain(&error, limits))?;
        String::from_utf8(out.bytes)
            .map_err(|_| TextError::Template("it wrote something that is not text".into()))
    }
}

/// A buffer that refuses to grow past its limit.
struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
    full: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.bytes_max {
            self.full = true;
            return Err(io::Error::other("the output is full"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn dialect() -> Result<Environment<'static>, Error> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    let mut environment = Environment::new();
    environment.set_syntax(syntax);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    environment.set_debug(false);
    environment.set_formatter(|out, _, value| {
        let mut text = String::new();
        python::write_str(&mut text, value)?;
        out.write_str(&text).map_err(Error::from)
    });
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("string", |value: &Value| -> Result<String, Error> {
        let mut text = String::new();
        python::write_str(&mut text, value)?;
        Ok(text)
    });
    // In Python a string and a mapping have a length and items too.
    environment.add_test("sequence", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined
        )
    });
    environment.add_test("iterable", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Seq
                | ValueKind::Map
                | ValueKind::Iterable
                | ValueKind::String
                | ValueKind::Undefined
        )
    });
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_function("cycler", minijinja_contrib::globals::cycler);
    Ok(environment)
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let mut text = String::new();
    python::write_str(&mut text, message)?;
    Err(Error::new(ErrorKind::InvalidOperation, text.clone()).with_source(Raised(text)))
}

/// The engine's error as this crate's.
fn explain(error: &Error, limits: TemplateLimits) -> TextError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        if let Some(raised) = this.downcast_ref::<Raised>() {
            return TextError::Refused(raised.0.clone());
        }
        if let Some(engine) = this.downcast_ref::<Error>()
            && engine.kind() == ErrorKind::OutOfFuel
        {
            return TextError::TemplateLimit {
                what: "instructions",
                limit: limits.instructions_max,
            };
        }
        cause = this.source();
    }
    TextError::Template(describe(error))
}

fn describe(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}
