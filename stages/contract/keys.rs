//! The reference of keys: each table of a configuration describes its keys in the words of its own declaration.
//! Independent of which kinds there are.

use std::fmt;

use serde::{
    Serialize,
    de::{self, DeserializeOwned, DeserializeSeed, SeqAccess, Visitor},
};

/// A key of a configuration, for people to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name. A key of a table has the table's name before it, as in `lora.rank`.
    pub name: String,
    /// The type of its value, such as `integer`.
    pub value: String,
    /// Its default as JSON, if it has one.
    pub default: Option<String>,
    /// Whether it must be given.
    pub required: bool,
    /// What it means.
    pub about: String,
}

/// A configuration whose keys are known. The macro `keys!` implements it.
pub trait Keys: Serialize + DeserializeOwned {
    /// The name, the type and the meaning of each key.
    fn fields() -> Vec<(&'static str, String, &'static str)>;

    /// The keys of the table. `required` has those without a default, with any valid value.
    fn keys(required: &serde_json::Value) -> Vec<Key> {
        let read = serde_json::from_value::<Self>(required.clone());
        let defaults = read.and_then(|read| serde_json::to_value(read)).unwrap_or_default();
        let key = |(name, value, about): (&str, String, &str)| {
            let required = required.get(name).is_some();
            let default = defaults.get(name).filter(|default| !required && !default.is_null());
            Key {
                name: name.into(),
                value,
                default: default.map(ToString::to_string),
                required,
                about: about.trim().into(),
            }
        };
        Self::fields().into_iter().map(key).collect()
    }
}

/// `keys` with those of the table `name` inserted after it.
pub(crate) fn with_table(keys: Vec<Key>, name: &str, table: Vec<Key>) -> Vec<Key> {
    let below = |key: Key| Key { name: format!("{name}.{}", key.name), ..key };
    let (mut all, mut table) = (Vec::with_capacity(keys.len() + table.len()), Some(table));
    for key in keys {
        let table = table.take_if(|_| key.name == name);
        all.push(if table.is_some() { Key { default: None, ..key } } else { key });
        all.extend(table.into_iter().flatten().map(below));
    }
    all
}

/// Declares a table of a configuration, and implements [`Keys`] for it from the doc comments of its fields. Fields with
/// `= VALUE` behind the type give the table a `Default`.
macro_rules! keys {
    (
        $(#[$meta:meta])*
        pub struct $table:ident {
            $( $(#[doc = $doc:literal])+ $(#[serde($($serde:tt)*)])? pub $key:ident: $type:ty = $default:expr, )*
        }
    ) => {
        $crate::contract::keys::keys! {
            $(#[$meta])*
            pub struct $table {
                $( $(#[doc = $doc])+ $(#[serde($($serde)*)])? pub $key: $type, )*
            }
        }

        impl Default for $table {
            fn default() -> Self {
                Self { $( $key: $default, )* }
            }
        }
    };
    (
        $(#[$meta:meta])*
        pub struct $table:ident {
            $( $(#[doc = $doc:literal])+ $(#[serde($($serde:tt)*)])? pub $key:ident: $type:ty, )*
        }
    ) => {
        $(#[$meta])*
        pub struct $table {
            $( $(#[doc = $doc])+ $(#[serde($($serde)*)])? pub $key: $type, )*
        }

        impl $crate::contract::keys::Keys for $table {
            fn fields() -> Vec<(&'static str, String, &'static str)> {
                vec![$( (stringify!($key), $crate::contract::keys::words::<$type>(), concat!($($doc),+)), )*]
            }
        }
    };
}
pub(crate) use keys;

/// The type of a `T` in words, found out by asking `T` to deserialise itself.
pub(crate) fn words<T: DeserializeOwned>() -> String {
    T::deserialize(Describe).err().map_or_else(String::new, |words| words.0)
}

/// Answers every request for a value with an error that says in words what was requested.
struct Describe;

/// The words.
#[derive(Debug)]
struct Words(String);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Words {}

impl de::Error for Words {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// What `visitor` expects, in its own words.
struct Expected<'a, V>(&'a V);

impl<'de, V: Visitor<'de>> fmt::Display for Expected<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }
}

impl<'de> de::Deserializer<'de> for Describe {
    type Error = Words;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Words> {
        let expected = Expected(&visitor).to_string();
        Err(Words(match expected.as_str() {
            "usize" | "u8" | "u16" | "u32" | "u64" | "isize" | "i8" | "i16" | "i32" | "i64" => "integer".into(),
            "f32" | "f64" => "number".into(),
            "a boolean" => "true or false".into(),
            "a string" => "string".into(),
            _ if expected.starts_with("struct ") => "table".into(),
            _ => expected,
        }))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Words> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Words> {
        visitor.visit_seq(self).map_err(|item| Words(format!("list of {item}s")))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        choices: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Words> {
        Err(Words(choices.iter().map(|choice| format!("\"{choice}\"")).collect::<Vec<_>>().join(", ")))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct newtype_struct tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de> SeqAccess<'de> for Describe {
    type Error = Words;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Words> {
        seed.deserialize(Self).map(Some)
    }
}
