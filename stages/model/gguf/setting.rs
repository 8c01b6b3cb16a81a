//! The settings of a model in a GGUF file's metadata, which are written, and compared with a `config.json` when they are read.

use super::reader::Value;

/// The value of a key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Setting {
    Number(usize),
    Float(f64),
    Flag(bool),
    Text(&'static str),
    Numbers(Vec<i32>),
    Floats(Vec<f32>),
}

impl Setting {
    /// Whether a file's value is this one. Floats are f32 there.
    pub(super) fn is(&self, value: &Value) -> bool {
        let float = |value: &Value| if let Value::Number(number) = value { Some(*number as f32) } else { None };
        match (self, value) {
            (Self::Number(number), Value::Whole(there)) => *there == *number as i128,
            (Self::Float(number), value) => float(value) == Some(*number as f32),
            (Self::Flag(flag), Value::Flag(there)) => flag == there,
            (Self::Text(text), Value::Text(there)) => text == there,
            (Self::Numbers(numbers), Value::List(there)) => {
                there.iter().map(Value::whole).eq(numbers.iter().map(|number| Some(i128::from(*number))))
            }
            (Self::Floats(numbers), Value::List(there)) => {
                there.iter().map(float).eq(numbers.iter().copied().map(Some))
            }
            _ => false,
        }
    }
}
