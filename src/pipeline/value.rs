//! TOML values in which every key and value keeps its position in the file, even after merging and substitution.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Span};

/// A value and its position.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) span: Span,
}

/// A value of TOML. Dates are left out, since no key takes them.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Array(Vec<Node>),
    Table(Table),
}

/// A table in the order of the file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table(pub(crate) Vec<Entry>);

/// A key of a table, and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) node: Node,
}

impl Table {
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.key == key)
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Entry> {
        self.0.iter_mut().find(|entry| entry.key == key)
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<Entry> {
        let index = self.0.iter().position(|entry| entry.key == key)?;
        Some(self.0.remove(index))
    }

    /// Removes the entry whose key is at `span`, in this table or in one below. Returns whether there was one.
    pub(super) fn remove_at(&mut self, span: &Span) -> bool {
        let before = self.0.len();
        self.0.retain(|entry| entry.key_span != *span);
        self.0.len() < before
            || self.0.iter_mut().any(|entry| match &mut entry.node.value {
                Value::Table(below) => below.remove_at(span),
                _ => false,
            })
    }

    /// `a.b.c = value` as a table.
    pub(super) fn nested(key: &str, node: Node) -> Self {
        let span = node.span.clone();
        let (first, node) = match key.split_once('.') {
            Some((first, rest)) => (first, Node { value: Value::Table(Self::nested(rest, node)), span: span.clone() }),
            None => (key, node),
        };
        Self(vec![Entry { key: first.into(), key_span: span, node }])
    }

    /// All values by dotted key. A table for which `is_value` returns true counts as a value.
    pub(super) fn flat(self, is_value: fn(&Self) -> bool) -> Vec<(String, Node)> {
        let mut found = Vec::new();
        for Entry { key, node, .. } in self.0 {
            match node.value {
                Value::Table(below) if !is_value(&below) => {
                    found.extend(below.flat(is_value).into_iter().map(|(name, node)| (format!("{key}.{name}"), node)));
                }
                _ => found.push((key, node)),
            }
        }
        found
    }

    /// The keys of the table under `key`; none if there is no such table.
    pub(super) fn keys_of(&self, key: &str) -> Vec<&str> {
        match self.get(key).map(|entry| &entry.node.value) {
            Some(Value::Table(table)) => table.0.iter().map(|entry| entry.key.as_str()).collect(),
            _ => Vec::new(),
        }
    }

    /// As a value of the `toml` crate.
    pub(crate) fn to_toml(&self) -> toml::Table {
        self.0.iter().map(|entry| (entry.key.clone(), entry.node.value.to_toml())).collect()
    }

    /// Merges `over` into this table, key by key. Values of `over` take precedence.
    pub(crate) fn merge(&mut self, over: Table) {
        for entry in over.0 {
            match self.get_mut(&entry.key) {
                Some(mine) => match (&mut mine.node.value, entry.node.value) {
                    (Value::Table(mine), Value::Table(over)) => mine.merge(over),
                    (_, value) => {
                        mine.key_span = entry.key_span;
                        mine.node = Node { value, span: entry.node.span };
                    }
                },
                None => self.0.push(entry),
            }
        }
    }
}

impl Value {
    pub(crate) fn as_number(&self) -> Option<f64> {
        match self {
            Self::Integer(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// As a value of the `toml` crate.
    pub(crate) fn to_toml(&self) -> toml::Value {
        match self {
            Self::String(text) => toml::Value::String(text.clone()),
            Self::Integer(number) => toml::Value::Integer(*number),
            Self::Float(number) => toml::Value::Float(*number),
            Self::Boolean(value) => toml::Value::Boolean(*value),
            Self::Array(items) => toml::Value::Array(items.iter().map(|item| item.value.to_toml()).collect()),
            Self::Table(table) => toml::Value::Table(table.to_toml()),
        }
    }
}

/// Writes the value as in a pipeline file.
impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_toml().fmt(f)
    }
}

impl Node {
    /// The type of the value, for messages.
    pub(crate) fn type_name(&self) -> &'static str {
        match self.value {
            Value::String(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Boolean(_) => "a boolean",
            Value::Array(_) => "an array",
            Value::Table(_) => "a table",
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        if let Value::String(text) = &self.value { Some(text) } else { None }
    }

    /// The first string that equals `text`, in this value or below it.
    pub(crate) fn find_str(&self, text: &str) -> Option<&Node> {
        match &self.value {
            Value::String(own) if own == text => Some(self),
            Value::Array(items) => items.iter().find_map(|item| item.find_str(text)),
            Value::Table(table) => table.0.iter().find_map(|entry| entry.node.find_str(text)),
            _ => None,
        }
    }
}

/// Parses the TOML text of the source `file`.
pub(crate) fn parse(text: &str, file: usize) -> Result<Table, Diagnostic> {
    let span = |range: Range<usize>| Span { file, range };
    let document = DeTable::parse(text).map_err(|error| {
        let message = error.message().trim_end();
        let help = match message {
            "duplicate key" => "it is there already, further up: a name can be given once",
            _ => "this is not valid TOML: strings need quotes, table names need [brackets]",
        };
        Diagnostic::new(message, Some(span(error.span().unwrap_or(0..0)))).help(help)
    })?;
    table(document.into_inner(), file)
}

fn table(from: DeTable<'_>, file: usize) -> Result<Table, Diagnostic> {
    let mut entries = from
        .into_iter()
        .map(|(key, value)| {
            let key_span = Span { file, range: key.span() };
            Ok(Entry { key: key.into_inner().into_owned(), key_span, node: node(value, file)? })
        })
        .collect::<Result<Vec<_>, Diagnostic>>()?;
    entries.sort_by_key(|entry| entry.key_span.range.start);
    Ok(Table(entries))
}

fn node(from: toml::Spanned<DeValue<'_>>, file: usize) -> Result<Node, Diagnostic> {
    let span = Span { file, range: from.span() };
    let wrong = |message: &str| Diagnostic::new(message, Some(span.clone()));
    let value = match from.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Boolean(value) => Value::Boolean(value),
        DeValue::Integer(number) => Value::Integer(
            i64::from_str_radix(number.as_str(), number.radix()).map_err(|_| wrong("this integer is out of range"))?,
        ),
        DeValue::Float(number) => {
            Value::Float(number.as_str().parse().map_err(|_| wrong("this number can't be represented"))?)
        }
        DeValue::Datetime(_) => return Err(wrong("dates are not supported").help("write it as a string, in quotes")),
        DeValue::Array(items) => {
            Value::Array(items.into_iter().map(|item| node(item, file)).collect::<Result<_, _>>()?)
        }
        DeValue::Table(from) => Value::Table(table(from, file)?),
    };
    Ok(Node { value, span })
}
