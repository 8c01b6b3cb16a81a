//! From conversations to token ids. Independent of files and of images' content.

pub mod conversation;
mod growth;
pub(crate) mod identity;
pub(crate) mod json_records;
mod sentencepiece;
pub mod stream;
pub mod template;
#[cfg(test)]
pub(crate) mod tests;
pub mod tokenizer;
