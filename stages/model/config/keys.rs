//! Reads keys of a JSON object, with errors that name the file and the key.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{ModelError, Result};

/// The keys of an object in the file at `path`.
pub(super) struct Keys<'a> {
    pub(super) keys: &'a Map<String, Value>,
    pub(super) path: &'a Path,
}

impl<'a> Keys<'a> {
    /// The value of a key; `None` if it is missing or null.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.keys.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn wrong(&self, message: impl Into<String>) -> ModelError {
        ModelError::file(self.path, message)
    }

    /// Rejects zeros.
    pub(super) fn positive(&self, numbers: &[(&str, usize)]) -> Result<()> {
        match numbers.iter().find(|(_, number)| *number == 0) {
            Some((name, _)) => Err(self.wrong(format!("`{name}` must be at least 1"))),
            None => Ok(()),
        }
    }

    /// A whole number. Without a default, the key is required.
    pub(super) fn number(&self, name: &str, default: Option<usize>) -> Result<usize> {
        match (self.get(name), default) {
            // A larger dimension means a broken file, and products of dimensions could overflow.
            (Some(value), _) => value
                .as_u64()
                .filter(|number| *number <= 1 << 28)
                .map(|number| number as usize)
                .ok_or_else(|| self.wrong(format!("`{name}` must be a whole number, not {value}"))),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.wrong(format!("the key `{name}` is missing"))),
        }
    }

    pub(super) fn float(&self, name: &str, default: f64) -> Result<f64> {
        self.get(name).map_or(Ok(default), |value| {
            value.as_f64().ok_or_else(|| self.wrong(format!("`{name}` must be a number, not {value}")))
        })
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        self.get(name).map_or(Ok(default), |value| {
            value.as_bool().ok_or_else(|| self.wrong(format!("`{name}` must be true or false, not {value}")))
        })
    }

    /// A name of one of `T`'s variants.
    pub(super) fn word<T: DeserializeOwned>(&self, name: &str, default: T) -> Result<T> {
        self.get(name).map_or(Ok(default), |value| {
            serde_json::from_value(value.clone()).map_err(|_| self.wrong(format!("`{name}`: {value} is not supported")))
        })
    }

    /// One token id, or a list of them.
    pub(super) fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match self.get(name) {
            None => Some(Vec::new()),
            Some(Value::Array(values)) => values.iter().map(id).collect(),
            Some(value) => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(format!("`{name}` must be a token id or a list of token ids")))
    }

    /// A number of the rotary position embedding, which newer files nest under `rope_parameters`.
    pub(super) fn rotary(&self, name: &str, default: f64) -> Result<f64> {
        match self.get("rope_parameters").and_then(Value::as_object) {
            Some(nested) if nested.contains_key(name) => Keys { keys: nested, path: self.path }.float(name, default),
            _ => self.float(name, default),
        }
    }

    /// Rejects values that would change the network if they were read.
    pub(super) fn only(&self, allowed: &[(&str, &[Value])]) -> Result<()> {
        for (name, values) in allowed {
            if let Some(value) = self.get(name).filter(|value| !values.contains(value)) {
                return Err(self.wrong(format!("`{name}` = {value} is not supported")));
            }
        }
        Ok(())
    }

    /// The keys that are neither read nor known to leave the network as it is.
    pub(super) fn unknown(&self, known: &[&[&str]]) -> Vec<String> {
        let is_known = |key: &String| known.iter().any(|list| list.contains(&key.as_str()));
        let given = self.keys.iter().filter(|(key, value)| !value.is_null() && !is_known(key));
        given.map(|(key, _)| key.clone()).collect()
    }
}
