//! A language model's `tokenizer.json`, and texts with image tokens in them. Independent of conversations.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use imp_model::IMAGE_TOKEN;
use tokenizers::{AddedToken, Tokenizer};

use super::{
    growth::{Growth, check_tables},
    sentencepiece::{self, Beside},
};
use crate::StageError;

/// Longest text in bytes: encoding it takes about 250 times the memory. A thousand pages have as many.
const LONGEST_TEXT: usize = 1 << 20;
/// Longest text in bytes after what the tokenizer puts into it.
const LONGEST_GROWN: u64 = 4 << 20;

/// The files of a tokenizer, the usual one first.
const FILE: &str = "tokenizer.json";
const SENTENCEPIECE: &str = "tokenizer.model";

/// Stands for an image in a text, as [`IMAGE_TOKEN`] does in a sequence of token ids.
pub const IMAGE_TEXT: &str = "<image>";

/// A tokenizer.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    /// The token that it puts before every text, such as `<s>`.
    bos: Option<i32>,
    growth: Growth,
    /// What the decoder does to tokens.
    decoding: Growth,
}

impl TextTokenizer {
    /// Whether a folder has a tokenizer.
    pub(crate) fn is_in(folder: &Path) -> bool {
        [FILE, SENTENCEPIECE].iter().any(|file| folder.join(file).is_file())
    }

    /// Reads `tokenizer.json` in `folder`, or the `tokenizer.model` of `SentencePiece` where that is missing; messages call that folder
    /// `named`.
    ///
    /// # Errors
    /// If it is missing or can't be read.
    pub fn open(folder: &Path, named: &Path) -> Result<Self, StageError> {
        let not_found = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        let (file, read) = match std::fs::read(folder.join(FILE)) {
            Err(error) if not_found(&error) && Self::is_in(folder) => {
                (SENTENCEPIECE, std::fs::read(folder.join(SENTENCEPIECE)))
            }
            read => (FILE, read),
        };
        let named = named.join(file);
        let bytes = read.map_err(|error| {
            if !not_found(&error) {
                return StageError::Io { path: folder.join(file), source: error };
            }
            let help = "the folder must hold a Hugging Face model with its tokenizer (`tokenizer.json`, or a Llama's `tokenizer.model`)";
            StageError::input(&named, "the file is missing", help)
        })?;
        let made = if file == FILE { Self::from_bytes(&bytes) } else { Self::from_sentencepiece(&bytes, folder) };
        made.map_err(|message| {
            let help = format!("download the model's `{file}` again");
            StageError::input(&named, format!("not a tokenizer: {message}"), help)
        })
    }

    /// A `tokenizer.model`, with what the files beside it say.
    fn from_sentencepiece(bytes: &[u8], folder: &Path) -> Result<Self, String> {
        let beside = |name: &str| -> Option<serde_json::Value> {
            serde_json::from_slice(&std::fs::read(folder.join(name)).ok()?).ok()
        };
        let (config, added) = (beside("tokenizer_config.json"), beside("added_tokens.json"));
        let file = sentencepiece::tokenizer_json(bytes, &Beside::read(config.as_ref(), added.as_ref()))?;
        Self::from_bytes(&serde_json::to_vec(&file).map_err(|error| error.to_string())?)
    }

    /// Reads the content of a `tokenizer.json`.
    ///
    /// # Errors
    /// A message.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        check_tables(bytes)?;
        let bytes = with_usual_tokens(bytes)?;
        let inner = contained(|| {
            let mut inner = Tokenizer::from_bytes(&bytes)?;
            // Files of published models may request either; sequences are cut and batched elsewhere.
            inner.with_truncation(None)?.with_padding(None);
            Ok(inner)
        })?;
        let (growth, decoding) = Growth::of(&inner)?;
        let mut tokenizer = Self { inner, bos: None, growth, decoding };
        tokenizer.bos = tokenizer.encode("")?.first().copied();
        tokenizer.check_leading()?;
        Ok(tokenizer)
    }

    /// Texts are put together of parts, of which each but the first loses the token that begins every text. A tokenizer that puts
    /// anything else around a text would lose or leave others.
    fn check_leading(&self) -> Result<(), String> {
        for text in ["", "a"] {
            let plain = contained(|| self.inner.encode_fast(text, false));
            let (Ok(plain), Ok(whole)) = (plain, self.encode(text)) else { continue };
            let leading = self.bos.into_iter().chain(plain.get_ids().iter().map(|id| *id as i32));
            if !whole.iter().copied().eq(leading) {
                return Err(
                    "its post-processor puts more around a text than one token before it, which is not supported"
                        .into(),
                );
            }
        }
        Ok(())
    }

    /// The content of its `tokenizer.json`, with all tokens that were added.
    ///
    /// # Errors
    /// A message.
    pub(crate) fn to_json(&self) -> Result<String, String> {
        self.inner.to_string(false).map_err(|error| error.to_string())
    }

    /// Adds `token` as one token with the next free id, if it is new.
    pub(crate) fn add_special(&mut self, token: &str) {
        self.inner.add_special_tokens(&[AddedToken::from(token, true)]);
    }

    /// The token that it puts before every text, if it does.
    pub(crate) fn bos(&self) -> Option<u32> {
        self.bos.and_then(|id| id.try_into().ok())
    }

    /// The number of tokens that it puts before every text: 1 for tokenizers with `<s>`.
    pub(crate) fn leading(&self) -> usize {
        usize::from(self.bos.is_some())
    }

    /// All tokens of the model, without added ones, in the order of their ids.
    pub(crate) fn vocabulary(&self) -> Vec<(u32, String)> {
        let mut tokens: Vec<(u32, String)> =
            self.inner.get_vocab(false).into_iter().map(|(token, id)| (id, token)).collect();
        tokens.sort_unstable();
        tokens
    }

    /// The tokens that were added to the model's, by their ids.
    pub(crate) fn added(&self) -> BTreeMap<u32, String> {
        self.inner.get_added_tokens_decoder().into_iter().map(|(id, token)| (id, token.content)).collect()
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The ids of a text. Special tokens are recognised in it.
    ///
    /// # Errors
    /// A message, if the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>, String> {
        if text.len() > LONGEST_TEXT {
            return Err(format!("a text of {} bytes is longer than {LONGEST_TEXT}, the limit", text.len()));
        }
        check_growth(&self.growth, text.len())?;
        let encoding = contained(|| self.inner.encode_fast(text, true))?;
        Ok(encoding.get_ids().iter().map(|id| *id as i32).collect())
    }

    /// The ids of a text in which `<image>` stands for an image: its parts are encoded separately, with -200 between them;
    /// only the first part gets the leading token (LLaVA's `tokenizer_image_token`).
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub fn encode_with_images(&self, text: &str) -> Result<Vec<i32>, String> {
        self.encode_parts(text.split(IMAGE_TEXT))
    }

    /// The ids of a prompt in which only the first `<image>` stands for an image: any other was written by who asks, and is text.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<i32>, String> {
        self.encode_parts(text.splitn(2, IMAGE_TEXT))
    }

    /// The ids of a text that is cut into parts by images: each part is encoded separately, with -200 between them; only the first
    /// one gets the leading token.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub fn encode_parts<'a>(&self, parts: impl Iterator<Item = &'a str>) -> Result<Vec<i32>, String> {
        let mut ids = Vec::new();
        for (number, part) in parts.enumerate() {
            if number > 0 {
                ids.push(IMAGE_TOKEN);
            }
            let part = self.encode(part)?;
            ids.extend(part.iter().skip(if number > 0 { self.leading() } else { 0 }));
        }
        Ok(ids)
    }

    /// The text of ids, without special tokens.
    ///
    /// # Errors
    /// A message, if an id is unknown to the decoder.
    pub fn decode(&self, ids: &[u32]) -> Result<String, String> {
        let tokens = ids.iter().filter_map(|id| self.inner.id_to_token(*id));
        check_growth(&self.decoding, tokens.map(|token| token.len()).sum())?;
        contained(|| self.inner.decode(ids, true))
    }
}

/// Calls the library, which relies on parts of a file that it does not check, and panics where they are wrong.
fn contained<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call))
        .map_err(|_| "its rules can't be followed: the file is damaged".to_string())?
        .map_err(|error| error.to_string())
}

/// The content of a `tokenizer.json` in which `<image>` is no token, and special tokens are found in a text as it stands. Models that
/// other programs load have a token for image features; here what follows the first `<image>` of a prompt is text. Files of older
/// Llamas, such as MobileLLaMA, say that special tokens are `normalized`: the library then looks for `▁</s>`, and makes
/// several tokens of a `</s>`. The tokenizers that these models were trained with did not.
fn with_usual_tokens(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    #[derive(serde::Deserialize)]
    struct Added {
        #[serde(default)]
        added_tokens: Vec<serde_json::Value>,
    }
    let is_image = |token: &serde_json::Value| token["content"] == IMAGE_TEXT;
    let is_missed = |token: &serde_json::Value| token["special"] == true && token["normalized"] == true;
    // Most of the file is the vocabulary, and seldom is anything to be done.
    let Ok(found) = serde_json::from_slice::<Added>(bytes) else { return Ok(Cow::Borrowed(bytes)) };
    if !found.added_tokens.iter().any(|token| is_image(token) || is_missed(token)) {
        return Ok(Cow::Borrowed(bytes));
    }
    let mut file: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if let Some(added) = file.get_mut("added_tokens").and_then(serde_json::Value::as_array_mut) {
        added.retain(|token| !is_image(token));
        added.iter_mut().filter(|token| is_missed(token)).for_each(|token| token["normalized"] = false.into());
    }
    serde_json::to_vec(&file).map(Cow::Owned).map_err(|error| error.to_string())
}

fn check_growth(growth: &Growth, bytes: usize) -> Result<(), String> {
    let grown = growth.of_text(bytes as u64);
    if grown > LONGEST_GROWN {
        return Err(format!(
            "the tokenizer may replace a text of {bytes} bytes by {grown}, more than {LONGEST_GROWN}, the limit"
        ));
    }
    Ok(())
}
