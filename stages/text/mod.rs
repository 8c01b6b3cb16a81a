//! From conversations to token ids. Independent of files and of images' content.

pub mod conversation;
mod growth;
pub mod template;
#[cfg(test)]
mod tests;
pub mod tokenizer;
