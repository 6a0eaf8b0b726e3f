//! Identities and pairs.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Visitor},
};

/// Identity of a picture or a text: a number or a string.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(untagged)]
pub enum Id {
    /// A number.
    Int(i64),
    /// Anything else.
    Text(String),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(value) => value.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;
        impl Visitor<'_> for IdVisitor {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an id: a string or a whole number from -2^63 to 2^63 - 1")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Id, E> {
                Ok(Id::Int(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Id, E> {
                let outside = |_| E::invalid_value(de::Unexpected::Unsigned(value), &self);
                i64::try_from(value).map(Id::Int).map_err(outside)
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Id, E> {
                Ok(Id::Text(value.to_owned()))
            }
        }
        deserializer.deserialize_any(IdVisitor)
    }
}

impl From<i64> for Id {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<&str> for Id {
    /// A number if it is the decimal form of one.
    fn from(text: &str) -> Self {
        match text.parse::<i64>() {
            Ok(value) if value.to_string() == text => Self::Int(value),
            _ => Self::Text(text.to_string()),
        }
    }
}

/// A picture and a text that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The picture.
    pub image_id: Id,
    /// Identity of the text.
    pub text_id: Id,
    /// The text as stored.
    pub text: String,
}

impl Pair {
    /// Keys of what makes two pairs positives of each other: the picture, the text's identity, and
    /// the caption itself.
    pub fn keys(&self) -> Vec<u64> {
        let key = |kind: u8, value: &dyn Fn(&mut DefaultHasher)| {
            let mut hasher = DefaultHasher::new();
            kind.hash(&mut hasher);
            value(&mut hasher);
            hasher.finish()
        };
        vec![
            key(0, &|hasher| self.image_id.hash(hasher)),
            key(1, &|hasher| self.text_id.hash(hasher)),
            key(2, &|hasher| self.text.trim().hash(hasher)),
        ]
    }
}
