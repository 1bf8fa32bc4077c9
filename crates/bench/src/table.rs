//! A table of measurements: what it shows is what its JSON holds.

use comfy_table::{CellAlignment, presets};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Which way a number should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better: rates.
    Higher,
    /// Less is better: times, bytes.
    Lower,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    /// What tells rows apart, such as a model or a length.
    Key,
    /// Something counted or said about the row.
    Fact,
    /// A measurement.
    Measure(Better),
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name in the rows.
    pub key: String,
    /// Above it, with the unit.
    pub heading: String,
    /// What it holds.
    pub holds: Holds,
    /// Digits shown after the point.
    pub decimals: u8,
}

/// Columns and rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Above it.
    pub title: String,
    /// From left to right.
    pub columns: Vec<Column>,
    /// Values by their column's key; an absent one was not measured.
    pub rows: Vec<Map<String, Value>>,
}

impl Table {
    /// An empty table.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), columns: Vec::new(), rows: Vec::new() }
    }

    fn column(mut self, key: &str, heading: &str, holds: Holds, decimals: u8) -> Self {
        self.columns.push(Column { key: key.into(), heading: heading.into(), holds, decimals });
        self
    }

    /// Adds a column that tells rows apart.
    pub fn key(self, key: &str, heading: &str) -> Self {
        self.column(key, heading, Holds::Key, 0)
    }

    /// Adds a column of facts, numbers with so many decimals.
    pub fn fact(self, key: &str, heading: &str, decimals: u8) -> Self {
        self.column(key, heading, Holds::Fact, decimals)
    }

    /// Adds a measurement of which more is better.
    pub fn higher(self, key: &str, heading: &str, decimals: u8) -> Self {
        self.column(key, heading, Holds::Measure(Better::Higher), decimals)
    }

    /// Adds a measurement of which less is better.
    pub fn lower(self, key: &str, heading: &str, decimals: u8) -> Self {
        self.column(key, heading, Holds::Measure(Better::Lower), decimals)
    }

    /// Adds a row: one value a column, in their order. A number that is none becomes absent.
    pub fn row<const N: usize>(&mut self, values: [Value; N]) {
        assert_eq!(N, self.columns.len(), "a row of {:?} has one value a column", self.title);
        let cells = self.columns.iter().map(|column| column.key.clone()).zip(values);
        self.rows.push(cells.filter(|(_, value)| !value.is_null()).collect());
    }

    /// The numbers of two columns as points, for rows that have both.
    pub fn points(&self, x: &str, y: &str) -> Vec<(f64, f64)> {
        let number = |row: &Map<String, Value>, key: &str| row.get(key).and_then(Value::as_f64);
        self.rows.iter().filter_map(|row| Some((number(row, x)?, number(row, y)?))).collect()
    }

    /// As Markdown, which reads well in a terminal too.
    pub fn markdown(&self) -> String {
        let mut shown = comfy_table::Table::new();
        let headings = self.columns.iter().map(|column| column.heading.as_str());
        shown.load_style(presets::ASCII_MARKDOWN).set_header(headings);
        for row in &self.rows {
            shown.add_row(self.columns.iter().map(|column| cell(column, row.get(&column.key))));
        }
        for (column, shown) in self.columns.iter().zip(shown.column_iter_mut()) {
            let text =
                |row: &Map<String, Value>| row.get(&column.key).is_some_and(Value::is_string);
            if !self.rows.iter().any(text) {
                shown.set_cell_alignment(CellAlignment::Right);
            }
        }
        shown.to_string()
    }
}

fn cell(column: &Column, value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".into(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => match number.as_f64() {
            Some(float) if !number.is_u64() && !number.is_i64() => {
                format!("{float:.*}", usize::from(column.decimals))
            }
            _ => number.to_string(),
        },
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Table {
        let mut table = Table::new("t").key("model", "Model").fact("n", "Tokens", 0);
        table = table.higher("rate", "tok/s", 1).lower("ms", "ms", 2);
        table.row([json!("a"), json!(8), json!(12.34), json!(f64::NAN)]);
        table.row([json!("b"), json!(16), json!(99.96), json!(0.125)]);
        table
    }

    #[test]
    fn numbers_are_rounded_for_the_eye_alone() {
        let text = sample().markdown();
        assert!(text.contains("| a     |      8 |  12.3 |    - |"), "{text}");
        assert!(text.contains("| b     |     16 | 100.0 | 0.12 |"), "{text}");
        assert_eq!(sample().rows[0]["rate"], 12.34);
        assert!(!sample().rows[0].contains_key("ms"));
    }

    #[test]
    fn points_leave_out_what_was_not_measured() {
        assert_eq!(sample().points("n", "ms"), [(16.0, 0.125)]);
        assert_eq!(sample().points("n", "rate"), [(8.0, 12.34), (16.0, 99.96)]);
    }

    #[test]
    fn json_comes_back_whole() {
        let text = serde_json::to_string(&sample()).expect("JSON");
        assert_eq!(serde_json::from_str::<Table>(&text).expect("a table"), sample());
        assert!(text.contains(r#""holds":{"measure":"higher"}"#), "{text}");
    }
}
