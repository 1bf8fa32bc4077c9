//! Typed look-ups in a JSON object whose refusals name the key and its value.

use serde_json::{Map, Value};

use crate::fault::{Loaded, corrupt};

/// The top level of `config.json`, or a named object in it.
pub struct Keys<'a> {
    map: &'a Map<String, Value>,
    place: String,
}

/// A value short enough for a message.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

impl<'a> Keys<'a> {
    /// The top level.
    pub fn new(value: &'a Value) -> Loaded<Self> {
        Self::named(value, "config.json".to_owned())
    }

    fn named(value: &'a Value, place: String) -> Loaded<Self> {
        match value.as_object() {
            Some(map) => Ok(Self { map, place }),
            None => Err(corrupt(format!("{place} is {}, not an object", shown(value)))),
        }
    }

    /// The value of `key`; JSON's null counts as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The value of `key` as it is.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.get(key)
    }

    /// Every key and value.
    pub fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// Whether `key` holds something.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Refuses the value of `key`.
    pub fn wrong<T>(&self, key: &str, value: &Value, wanted: &str) -> Loaded<T> {
        Err(corrupt(format!("{}: {key} is {}; expected {wanted}", self.place, shown(value))))
    }

    fn absent<T>(&self, key: &str) -> Loaded<T> {
        Err(corrupt(format!("{}: {key} is missing", self.place)))
    }

    /// The object under `key`.
    pub fn object(&self, key: &str) -> Loaded<Option<Keys<'a>>> {
        self.get(key).map(|value| Self::named(value, format!("{}: {key}", self.place))).transpose()
    }

    /// A text.
    pub fn optional_text(&self, key: &str) -> Loaded<Option<String>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => self.wrong(key, other, "a text"),
        }
    }

    /// A text that must be there.
    pub fn text(&self, key: &str) -> Loaded<String> {
        match self.optional_text(key)? {
            Some(text) => Ok(text),
            None => self.absent(key),
        }
    }

    /// A list of texts.
    pub fn optional_texts(&self, key: &str) -> Loaded<Option<Vec<String>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let texts: Option<Vec<String>> = value.as_array().and_then(|items| {
            let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
            texts.collect()
        });
        match texts {
            Some(texts) => Ok(Some(texts)),
            None => self.wrong(key, value, "a list of texts"),
        }
    }

    /// A list of indices below `end`.
    pub fn optional_indices(&self, key: &str, end: usize) -> Loaded<Option<Vec<usize>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let index = |item: &Value| usize::try_from(item.as_u64()?).ok().filter(|i| *i < end);
        let indices: Option<Vec<usize>> =
            value.as_array().and_then(|items| items.iter().map(index).collect());
        match indices {
            Some(indices) => Ok(Some(indices)),
            None => self.wrong(key, value, &format!("a list of layers below {end}")),
        }
    }

    /// A whole number from 1 to `max`.
    pub fn optional_size(&self, key: &str, max: u64) -> Loaded<Option<i32>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(number @ 1..) if number <= max => Ok(Some(number as i32)),
            _ => self.wrong(key, value, &format!("a whole number from 1 to {max}")),
        }
    }

    /// A whole number from 1 to `max` that must be there.
    pub fn size(&self, key: &str, max: u64) -> Loaded<i32> {
        match self.optional_size(key, max)? {
            Some(number) => Ok(number),
            None => self.absent(key),
        }
    }

    /// A finite number above 0 and at most `max`.
    pub fn optional_positive(&self, key: &str, max: f64) -> Loaded<Option<f64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if number > 0.0 && number <= max => Ok(Some(number)),
            _ => self.wrong(key, value, &format!("a number above 0, at most {max}")),
        }
    }

    /// A finite number above 0 and at most `max` that must be there.
    pub fn positive(&self, key: &str, max: f64) -> Loaded<f32> {
        match self.optional_positive(key, max)? {
            Some(number) => Ok(number as f32),
            None => self.absent(key),
        }
    }

    /// A finite number of at least 0 and at most `max`.
    pub fn optional_number(&self, key: &str, max: f64) -> Loaded<Option<f64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if (0.0..=max).contains(&number) => Ok(Some(number)),
            _ => self.wrong(key, value, &format!("a number from 0 to {max}")),
        }
    }

    /// True or false.
    pub fn flag(&self, key: &str, absent: bool) -> Loaded<bool> {
        match self.get(key) {
            None => Ok(absent),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => self.wrong(key, other, "true or false"),
        }
    }

    /// Says that `key`'s value is not supported, for the reason given.
    pub fn place(&self) -> &str {
        &self.place
    }
}
