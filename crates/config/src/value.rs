//! One key's value: read from TOML or from the text of a variable or flag, held against what is
//! allowed, and written back as TOML.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use toml::de::DeValue;

/// A value as it was given.
#[derive(Clone, Copy)]
pub(crate) enum Given<'a> {
    /// In the file.
    Toml(&'a DeValue<'a>),
    /// In a variable or a flag.
    Text(&'a str),
}

impl Given<'_> {
    /// The value as a person should see it in a message.
    pub(crate) fn shown(&self) -> String {
        const CHARS_MAX: usize = 60;
        let text = match self {
            Given::Text(text) => format!("{text:?}"),
            Given::Toml(DeValue::String(text)) => format!("{text:?}"),
            Given::Toml(DeValue::Integer(number)) => number.as_str().to_owned(),
            Given::Toml(DeValue::Float(number)) => number.as_str().to_owned(),
            Given::Toml(DeValue::Boolean(truth)) => truth.to_string(),
            Given::Toml(DeValue::Datetime(when)) => when.to_string(),
            Given::Toml(DeValue::Array(_)) => "[…]".to_owned(),
            Given::Toml(DeValue::Table(_)) => "{…}".to_owned(),
        };
        if text.chars().count() <= CHARS_MAX {
            return text;
        }
        text.chars().take(CHARS_MAX).chain(['…']).collect()
    }
}

/// A type that a key can have.
pub(crate) trait Value: Sized {
    /// Reads it; `None` when the type is wrong or the number does not fit.
    fn read(given: Given<'_>) -> Option<Self>;
    /// As TOML; `None` when it is not set.
    fn show(&self) -> Option<toml::Value>;
}

/// What a key's value may be.
pub(crate) trait Allowed<T> {
    /// Ends the sentence "must be …".
    fn must_be(&self) -> String;
    /// Whether `value` is allowed.
    fn admits(&self, value: &T) -> bool;
}

/// Reads one value; the error ends the sentence "must be …".
pub(crate) fn read<T: Value>(given: Given<'_>, allowed: &impl Allowed<T>) -> Result<T, String> {
    T::read(given).filter(|value| allowed.admits(value)).ok_or_else(|| allowed.must_be())
}

macro_rules! whole_numbers {
    ($($number:ty),*) => {$(
        impl Value for $number {
            fn read(given: Given<'_>) -> Option<Self> {
                match given {
                    Given::Toml(DeValue::Integer(n)) => <$number>::from_str_radix(n.as_str(), n.radix()).ok(),
                    Given::Toml(_) => None,
                    Given::Text(text) => text.trim().replace('_', "").parse().ok(),
                }
            }
            fn show(&self) -> Option<toml::Value> {
                i64::try_from(*self).ok().map(toml::Value::Integer)
            }
        }
        impl Allowed<$number> for RangeInclusive<$number> {
            fn must_be(&self) -> String {
                format!("a whole number from {} to {}", self.start(), self.end())
            }
            fn admits(&self, value: &$number) -> bool {
                self.contains(value)
            }
        }
    )*};
}
whole_numbers!(u16, u32, u64, usize);

impl Value for bool {
    fn read(given: Given<'_>) -> Option<Self> {
        match given {
            Given::Toml(value) => value.as_bool(),
            Given::Text("true" | "1" | "yes" | "on") => Some(true),
            Given::Text("false" | "0" | "no" | "off") => Some(false),
            Given::Text(_) => None,
        }
    }
    fn show(&self) -> Option<toml::Value> {
        Some(toml::Value::Boolean(*self))
    }
}

impl Value for String {
    fn read(given: Given<'_>) -> Option<Self> {
        match given {
            Given::Toml(value) => value.as_str().map(str::to_owned),
            Given::Text(text) => Some(text.to_owned()),
        }
    }
    fn show(&self) -> Option<toml::Value> {
        Some(toml::Value::String(self.clone()))
    }
}

impl Value for PathBuf {
    fn read(given: Given<'_>) -> Option<Self> {
        String::read(given).map(PathBuf::from)
    }
    fn show(&self) -> Option<toml::Value> {
        Some(toml::Value::String(self.to_string_lossy().into_owned()))
    }
}

/// Keys with their weights.
impl Value for BTreeMap<String, u32> {
    /// In a variable or flag as `key=4,other=1`.
    fn read(given: Given<'_>) -> Option<Self> {
        match given {
            Given::Toml(value) => value
                .as_table()?
                .iter()
                .map(|(key, weight)| {
                    let weight = u32::read(Given::Toml(weight.get_ref()))?;
                    Some((key.get_ref().to_string(), weight))
                })
                .collect(),
            Given::Text("") => Some(Self::new()),
            Given::Text(text) => text
                .split(',')
                .map(|pair| {
                    let (key, weight) = pair.split_once('=')?;
                    Some((key.trim().to_owned(), weight.trim().parse().ok()?))
                })
                .collect(),
        }
    }
    fn show(&self) -> Option<toml::Value> {
        let weight = |(key, weight): (&String, &u32)| (key.clone(), i64::from(*weight).into());
        Some(toml::Value::Table(self.iter().map(weight).collect()))
    }
}

/// Keys that a header can hold, with weights.
pub(crate) struct Weights;

impl Allowed<BTreeMap<String, u32>> for Weights {
    fn must_be(&self) -> String {
        "a table of at most 256 keys without blanks, each with a weight from 1 to 1000".to_owned()
    }
    fn admits(&self, value: &BTreeMap<String, u32>) -> bool {
        let fits = |(key, weight): (&String, &u32)| {
            !key.is_empty()
                && key.len() <= 512
                && key.bytes().all(|byte| byte.is_ascii_graphic())
                && (1..=1000).contains(weight)
        };
        value.len() <= 256 && value.iter().all(fits)
    }
}

impl<T: Value> Value for Option<T> {
    /// An empty variable or text unsets the key.
    fn read(given: Given<'_>) -> Option<Self> {
        match given {
            Given::Text("") => Some(None),
            Given::Toml(value) if value.as_str() == Some("") => Some(None),
            given => T::read(given).map(Some),
        }
    }
    fn show(&self) -> Option<toml::Value> {
        self.as_ref().and_then(T::show)
    }
}

impl<T: Value> Value for Vec<T> {
    /// In a variable or flag the elements are parted by colons, as in `PATH`.
    fn read(given: Given<'_>) -> Option<Self> {
        match given {
            Given::Toml(value) => value
                .as_array()?
                .iter()
                .map(|element| T::read(Given::Toml(element.get_ref())))
                .collect(),
            Given::Text(text) => text
                .split(':')
                .filter(|part| !part.is_empty())
                .map(|part| T::read(Given::Text(part)))
                .collect(),
        }
    }
    fn show(&self) -> Option<toml::Value> {
        self.iter().map(T::show).collect::<Option<_>>().map(toml::Value::Array)
    }
}

/// `allowed`, or nothing.
pub(crate) struct Optional<A>(pub(crate) A);

impl<T, A: Allowed<T>> Allowed<Option<T>> for Optional<A> {
    fn must_be(&self) -> String {
        format!("{}, or left out", self.0.must_be())
    }
    fn admits(&self, value: &Option<T>) -> bool {
        value.as_ref().is_none_or(|value| self.0.admits(value))
    }
}

/// A list of at most `max` elements of `each`.
pub(crate) struct ListOf<A> {
    pub(crate) each: A,
    pub(crate) max: usize,
}

impl<T, A: Allowed<T>> Allowed<Vec<T>> for ListOf<A> {
    fn must_be(&self) -> String {
        format!("a list of at most {}, each {}", self.max, self.each.must_be())
    }
    fn admits(&self, value: &Vec<T>) -> bool {
        value.len() <= self.max && value.iter().all(|element| self.each.admits(element))
    }
}

/// `true` or `false`.
pub(crate) struct Truth;

impl Allowed<bool> for Truth {
    fn must_be(&self) -> String {
        "true or false".to_owned()
    }
    fn admits(&self, _: &bool) -> bool {
        true
    }
}

/// A text without blanks and control characters, 1 to 512 bytes.
pub(crate) struct Word(pub(crate) &'static str);

impl Allowed<String> for Word {
    fn must_be(&self) -> String {
        self.0.to_owned()
    }
    fn admits(&self, value: &String) -> bool {
        (1..=512).contains(&value.len())
            && !value.chars().any(|c| c.is_control() || c.is_whitespace())
    }
}

/// An absolute path, or one that begins with `~/`.
pub(crate) struct FullPath;

impl Allowed<PathBuf> for FullPath {
    fn must_be(&self) -> String {
        "an absolute path, or one that begins with ~/".to_owned()
    }
    fn admits(&self, value: &PathBuf) -> bool {
        (value.is_absolute() || value.starts_with("~"))
            && !value.as_os_str().as_encoded_bytes().contains(&0)
    }
}

/// A power of two within a range of bytes, as the rings want it.
pub(crate) struct PowerOfTwo(pub(crate) RangeInclusive<usize>);

impl Allowed<usize> for PowerOfTwo {
    fn must_be(&self) -> String {
        format!("a power of two from {} to {}", self.0.start(), self.0.end())
    }
    fn admits(&self, value: &usize) -> bool {
        value.is_power_of_two() && self.0.contains(value)
    }
}

/// `path` with a leading `~` replaced by `home`.
pub(crate) fn expand_home(path: &mut PathBuf, home: &Path) {
    if let Ok(rest) = path.strip_prefix("~") {
        *path = home.join(rest);
    }
}

/// An enum whose values are written as lower-case words.
macro_rules! words {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $( $(#[$doc:meta])* $variant:ident = $word:literal, )* }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $( $(#[$doc])* $variant, )* }

        impl $name {
            /// The word for it in the file.
            pub fn word(self) -> &'static str {
                match self { $( Self::$variant => $word, )* }
            }
        }

        impl $crate::value::Value for $name {
            fn read(given: $crate::value::Given<'_>) -> Option<Self> {
                match <String as $crate::value::Value>::read(given)?.as_str() {
                    $( $word => Some(Self::$variant), )*
                    _ => None,
                }
            }
            fn show(&self) -> Option<toml::Value> {
                Some(toml::Value::String(self.word().to_owned()))
            }
        }

        impl $crate::value::Allowed<$name> for $crate::value::OneOf {
            fn must_be(&self) -> String {
                format!("one of {}", [$(concat!("\"", $word, "\"")),*].join(", "))
            }
            fn admits(&self, _: &$name) -> bool { true }
        }
    };
}
pub(crate) use words;

/// One of an enum's words.
pub(crate) struct OneOf;
