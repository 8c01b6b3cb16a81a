//! Deserializes a [`Node`] into a type, with errors that point into the file. Independent of the types.
//!
//! This is not the `toml` crate's deserializer because the tree was merged from several files, and its errors must point into the
//! right one.

use serde::de::{self, Deserialize, DeserializeOwned, IntoDeserializer, Visitor};

use super::{
    diagnostic::{Diagnostic, Diagnostics, Span},
    value::{Entry, Node, Table, Value},
};

/// Reads `T` from a table at `span`. All unknown keys are named. `taken` are keys of the same table that are read elsewhere: an
/// unknown key may be a misspelling of one of them. `foreign` are names of other programs, and what is meant by them here.
pub(super) fn from_table<T: DeserializeOwned>(
    mut table: Table,
    span: &Span,
    taken: &[&str],
    foreign: &[(&str, &str)],
) -> Result<T, Diagnostics> {
    let mut problems = Diagnostics::new();
    loop {
        let error = match T::deserialize(TableReader { table: &table, span }) {
            Ok(value) if problems.is_empty() => return Ok(value),
            Ok(_) => return Err(problems),
            // It may be misspelt.
            Err(Error { what: What::MissingField(_), .. }) if !problems.is_empty() => return Err(problems),
            Err(error) => error,
        };
        let unknown = match (&error.what, &error.span) {
            (What::UnknownField(name, _), Some(at)) => Some((name.clone(), at.clone())),
            _ => None,
        };
        let mut problem = error.into_diagnostic(span, taken);
        let meant = unknown.as_ref().and_then(|(name, _)| foreign.iter().find(|(other, _)| other == name));
        if let Some((_, here)) = meant {
            problem = problem.help(format!("write {here}"));
        }
        problems.push(problem);
        // Without it, the next mistake shows.
        if !unknown.is_some_and(|(_, at)| table.remove_at(&at)) {
            return Err(problems);
        }
    }
}

/// Reads `T` from a value.
pub(super) fn from_node<'de, T: Deserialize<'de>>(node: &'de Node) -> Result<T, Diagnostic> {
    T::deserialize(node).map_err(|error| error.into_diagnostic(&node.span, &[]))
}

/// An error of deserialization.
#[derive(Debug)]
pub(crate) struct Error {
    what: What,
    span: Option<Span>,
    /// The innermost key whose value is wrong.
    key: Option<String>,
}

#[derive(Debug)]
enum What {
    Other(String),
    /// A number in quotes: the message, and the number as written.
    Quoted(String, String),
    UnknownField(String, &'static [&'static str]),
    UnknownVariant(String, &'static [&'static str]),
    MissingField(&'static str),
}

impl Error {
    /// Sets the span, unless an inner value has already set it.
    fn at(mut self, span: &Span) -> Self {
        self.span.get_or_insert_with(|| span.clone());
        self
    }

    fn into_diagnostic(self, fallback: &Span, taken: &[&str]) -> Diagnostic {
        let span = Some(self.span.unwrap_or_else(|| fallback.clone()));
        match self.what {
            What::Other(message) => match self.key {
                Some(key) => Diagnostic::new(format!("`{key}`: {message}"), span),
                None => Diagnostic::new(message, span),
            },
            What::Quoted(message, number) => match self.key {
                Some(key) => Diagnostic::new(format!("`{key}`: {message}"), span)
                    .help(format!("remove the quotes: `{key} = {number}`")),
                None => Diagnostic::new(message, span).help(format!("remove the quotes: `{number}`")),
            },
            What::UnknownField(field, known) => Diagnostic::new(format!("unknown key `{field}`"), span)
                .label("not a key of this table")
                .suggest_also(&field, known.iter().copied(), taken),
            What::UnknownVariant(value, known) => Diagnostic::new(format!("unknown value `{value}`"), span)
                .label("not one of the choices")
                .suggest(&value, known.iter().copied()),
            What::MissingField(field) => {
                Diagnostic::new(format!("the key `{field}` is missing"), span).help(format!("add `{field} = ...`"))
            }
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.what)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self { what: What::Other(message.to_string()), span: None, key: None }
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let message = format!("expected {}, found {}", expected_type(expected), describe(found));
        match found {
            de::Unexpected::Str(text) if is_number(expected) && text.parse::<f64>().is_ok() => {
                Self { what: What::Quoted(message, text.into()), span: None, key: None }
            }
            _ => Self::custom(message),
        }
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self { what: What::UnknownField(field.into(), expected), span: None, key: None }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self { what: What::UnknownVariant(variant.into(), expected), span: None, key: None }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { what: What::MissingField(field), span: None, key: None }
    }
}

fn is_number(expected: &dyn de::Expected) -> bool {
    const NUMBERS: [&str; 12] = ["usize", "u8", "u16", "u32", "u64", "isize", "i8", "i16", "i32", "i64", "f32", "f64"];
    NUMBERS.contains(&expected.to_string().as_str())
}

/// The expected type in words. Users don't know the names of Rust's types.
fn expected_type(expected: &dyn de::Expected) -> String {
    match expected.to_string().as_str() {
        "usize" | "u8" | "u16" | "u32" | "u64" => "a non-negative integer".into(),
        "isize" | "i8" | "i16" | "i32" | "i64" => "an integer".into(),
        "f32" | "f64" => "a number".into(),
        "a sequence" => "a list, as in [\"a\", \"b\"]".into(),
        "a map" => "a table".into(),
        other => other.into(),
    }
}

/// The value that was found, in words.
fn describe(found: de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Str(text) => format!("the string \"{text}\""),
        de::Unexpected::Signed(number) => format!("the integer {number}"),
        de::Unexpected::Float(number) => format!("the number {number}"),
        de::Unexpected::Bool(value) => format!("the boolean {value}"),
        de::Unexpected::Seq => "an array".into(),
        de::Unexpected::Map => "a table".into(),
        other => other.to_string(),
    }
}

impl<'de> de::Deserializer<'de> for &'de Node {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(value) => visitor.visit_bool(*value),
            Value::Array(items) => visitor.visit_seq(de::value::SeqDeserializer::new(items.iter())),
            Value::Table(table) => {
                return de::Deserializer::deserialize_any(TableReader { table, span: &self.span }, visitor);
            }
        }
        .map_err(|error: Error| error.at(&self.span))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.value {
            Value::String(name) => visitor.visit_enum(name.as_str().into_deserializer()),
            _ => Err(de::Error::custom(format!("expected a string, found {}", self.type_name()))),
        }
        .map_err(|error: Error| error.at(&self.span))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Error> for &'de Node {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Presents a table to serde.
struct TableReader<'de> {
    table: &'de Table,
    span: &'de Span,
}

impl<'de> de::Deserializer<'de> for TableReader<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Entries { left: self.table.0.iter(), current: None }).map_err(|error| error.at(self.span))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct Entries<'de> {
    left: std::slice::Iter<'de, Entry>,
    current: Option<&'de Entry>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.current = self.left.next();
        self.current
            .map(|entry| {
                let key: de::value::BorrowedStrDeserializer<'de, Error> =
                    de::value::BorrowedStrDeserializer::new(&entry.key);
                seed.deserialize(key).map_err(|error| error.at(&entry.key_span))
            })
            .transpose()
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(entry) = self.current.take() else {
            return Err(de::Error::custom("a value was read before its key"));
        };
        seed.deserialize(&entry.node).map_err(|error| {
            let mut error = error.at(&entry.node.span);
            error.key.get_or_insert_with(|| entry.key.clone());
            error
        })
    }
}
