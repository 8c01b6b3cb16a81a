//! The `tokenizer.model` of `SentencePiece` as the content of a `tokenizer.json`, as transformers converts those of Llamas. Independent of
//! where the file is.

use std::collections::HashMap;

use imp_model::gguf::beginning;
use serde_json::{Value, json};

/// Pieces, and letters of a piece. Llama's have 32,000 pieces of up to 16 letters.
const MOST_PIECES: usize = 1 << 20;
const LONGEST_PIECE: usize = 256;
/// Pairs of pieces that make another: 61,000 of Llama's. A file can name pieces of which nearly every cut is a pair.
const MOST_PAIRS: usize = 1 << 21;
/// What stands for a space in pieces.
const SPACE: &str = "\u{2581}";
/// `model_type` of a BPE model.
const BPE: u64 = 2;

/// Types of pieces.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// What the files beside a `tokenizer.model` say of it.
#[derive(Debug, Clone)]
pub(super) struct Beside {
    /// Whether `<s>` begins every text.
    pub(super) add_bos: bool,
    /// Whether a text between two special tokens begins with a space, too.
    pub(super) legacy: bool,
    /// More tokens, by their ids.
    added: Vec<(usize, String)>,
}

impl Beside {
    /// What a `tokenizer_config.json` says (without one, what transformers takes for a Llama) and an `added_tokens.json`.
    pub(super) fn read(config: Option<&Value>, added: Option<&Value>) -> Self {
        let flag = |key: &str| config.and_then(|config| config[key].as_bool()).unwrap_or(true);
        let tokens = added.and_then(Value::as_object).into_iter().flatten();
        let mut added: Vec<(usize, String)> =
            tokens.filter_map(|(token, id)| Some((usize::try_from(id.as_u64()?).ok()?, token.clone()))).collect();
        added.sort_unstable();
        Self { add_bos: flag("add_bos_token"), legacy: flag("legacy"), added }
    }
}

struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// What a model says of itself, as far as it is needed.
#[derive(Default)]
struct Model {
    pieces: Vec<Piece>,
    kind: Option<u64>,
    byte_fallback: bool,
    bos: Option<usize>,
    /// Whether it does anything else to a text than to put a space before it.
    changes_texts: bool,
}

/// The `tokenizer.json` of a `tokenizer.model`.
///
/// # Errors
/// A message, if it is damaged or no BPE model as those of Llamas.
pub(super) fn tokenizer_json(bytes: &[u8], beside: &Beside) -> Result<Value, String> {
    let model = read(bytes).ok_or("it is no model of SentencePiece, or damaged")?;
    if model.kind != Some(BPE) {
        return Err("it is not a BPE model, and only those are read".into());
    }
    if model.changes_texts {
        return Err("it changes texts in another way than Llama's, which is not supported".into());
    }
    let mut ids = HashMap::new();
    for (id, piece) in model.pieces.iter().enumerate() {
        if ids.insert(piece.text.as_str(), id).is_some() {
            return Err(format!("it has the piece {:?} twice", piece.text));
        }
    }
    let merges = merges(&model.pieces, &ids)?;
    let unknown = model.pieces.iter().find(|piece| piece.kind == UNKNOWN).map(|piece| &piece.text);
    let more = beside.added.iter().filter(|(_, token)| !ids.contains_key(token.as_str()));
    let added: Vec<Value> = model
        .pieces
        .iter()
        .enumerate()
        .filter_map(|(id, piece)| {
            let special = matches!(piece.kind, UNKNOWN | CONTROL);
            (special || piece.kind == USER_DEFINED).then(|| added(id, &piece.text, special))
        })
        .chain(more.map(|(id, token)| added(*id, token, true)))
        .collect();
    let bos = model.bos.or(Some(1)).and_then(|id| Some((id, &model.pieces.get(id)?.text))).filter(|_| beside.add_bos);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let (normalizer, pre_tokenizer) = if beside.legacy {
        let prefix = json!({"type": "Prepend", "prepend": SPACE});
        (json!({"type": "Sequence", "normalizers": [prefix, spaces]}), Value::Null)
    } else {
        (Value::Null, json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": false}))
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": bos.map(|(id, token)| beginning(id, token)),
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": model.byte_fallback,
            "ignore_merges": false,
            "vocab": ids,
            "merges": merges,
        },
    }))
}

/// A token that is found in a text before anything else.
fn added(id: usize, token: &str, special: bool) -> Value {
    json!({
        "id": id,
        "content": token,
        "single_word": false,
        "lstrip": false,
        "rstrip": false,
        "normalized": false,
        "special": special,
    })
}

/// Each pair of pieces that makes another one, the best first: the model keeps no pairs, only how good each piece is. Pairs that make
/// the same piece have the order of transformers: the longest beginning first.
fn merges(pieces: &[Piece], ids: &HashMap<&str, usize>) -> Result<Vec<[String; 2]>, String> {
    let mut found: Vec<(f32, usize, [usize; 2])> = Vec::new();
    for (whole, piece) in pieces.iter().enumerate().filter(|(_, piece)| piece.kind == NORMAL) {
        let cuts = piece.text.char_indices().skip(1).map(|(at, _)| piece.text.split_at(at));
        let pairs = cuts.filter_map(|(left, right)| Some([*ids.get(left)?, *ids.get(right)?]));
        found.extend(pairs.map(|pair| (piece.score, whole, pair)));
        if found.len() > MOST_PAIRS {
            return Err(format!("its pieces have more than {MOST_PAIRS} pairs"));
        }
    }
    let beginning = |pair: &[usize; 2]| pieces[pair[0]].text.len();
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(beginning(&b.2).cmp(&beginning(&a.2))));
    Ok(found.into_iter().map(|(_, _, pair)| pair.map(|id| pieces[id].text.clone())).collect())
}

/// Reads the protocol buffer (`sentencepiece_model.proto`). `None` if it is damaged.
fn read(bytes: &[u8]) -> Option<Model> {
    // Without settings it does what is not supported, see below.
    let mut model = Model { changes_texts: true, ..Model::default() };
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(piece)) if model.pieces.len() < MOST_PIECES => model.pieces.push(read_piece(piece)?),
            (1, _) => return None,
            (2, Field::Bytes(trainer)) => {
                for field in Fields(trainer) {
                    match field? {
                        (3, Field::Number(kind)) => model.kind = Some(kind),
                        (35, Field::Number(flag)) => model.byte_fallback = flag != 0,
                        (41, Field::Number(id)) => model.bos = usize::try_from(id).ok(),
                        _ => {}
                    }
                }
            }
            (3, Field::Bytes(normalizer)) => {
                // By default a space is put before a text, and several spaces become one.
                let (mut rules, mut prefix, mut one_space) = (false, true, true);
                for field in Fields(normalizer) {
                    match field? {
                        (2, Field::Bytes(map)) => rules = !map.is_empty(),
                        (3, Field::Number(flag)) => prefix = flag != 0,
                        (4, Field::Number(flag)) => one_space = flag != 0,
                        _ => {}
                    }
                }
                model.changes_texts = rules || !prefix || one_space;
            }
            _ => {}
        }
    }
    (!model.pieces.is_empty()).then_some(model)
}

fn read_piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: NORMAL };
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(text)) => piece.text = std::str::from_utf8(text).ok()?.into(),
            (2, Field::Four(score)) => piece.score = f32::from_bits(score),
            (3, Field::Number(kind)) => piece.kind = kind,
            _ => {}
        }
    }
    (!piece.text.is_empty() && piece.text.len() <= LONGEST_PIECE && !piece.score.is_nan()).then_some(piece)
}

/// The fields of a message of protocol buffers: their numbers and values. An item is `None` where it is damaged, and the last then.
struct Fields<'a>(&'a [u8]);

enum Field<'a> {
    Number(u64),
    Four(u32),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.number()?;
        let field = match tag & 7 {
            0 => Field::Number(self.number()?),
            1 => self.take(8).map(|_| Field::Other)?,
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Four(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((tag >> 3, field))
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (now, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(now)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::text::tokenizer::TextTokenizer;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("text/fixtures").join(name)
    }

    fn model() -> Vec<u8> {
        std::fs::read(fixture("sentencepiece.model")).unwrap()
    }

    /// A folder with the model, and perhaps a `tokenizer_config.json`.
    fn folder(config: Option<Value>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.model"), model()).unwrap();
        if let Some(config) = config {
            std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        }
        folder
    }

    fn open(folder: &tempfile::TempDir) -> TextTokenizer {
        TextTokenizer::open(folder.path(), folder.path()).unwrap()
    }

    /// The ids are those of `SentencePiece` itself, after `<s>`, and so are the texts that they decode to.
    #[test]
    fn texts_become_the_tokens_of_sentencepiece() {
        let tokenizer = open(&folder(None));
        assert_eq!((tokenizer.bos(), tokenizer.id("</s>")), (Some(1), Some(2)));
        let mut seen = 0;
        for line in std::fs::read_to_string(fixture("sentencepiece.jsonl")).unwrap().lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let found: Vec<u32> = tokenizer.encode(text).unwrap()[1..].iter().map(|id| *id as u32).collect();
            assert_eq!(found, ids, "{text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), case["decoded"].as_str().unwrap(), "{text:?}");
            seen += 1;
        }
        assert!(seen > 30, "{seen}");
    }

    #[test]
    fn the_files_beside_it_count() {
        let words = |tokenizer: &TextTokenizer| tokenizer.encode("a</s>a").unwrap();
        let legacy = words(&open(&folder(None)));
        assert_eq!((legacy[0], legacy[2], legacy[1]), (1, 2, legacy[3]), "a space before each");
        let new = folder(Some(json!({"legacy": false, "add_bos_token": false})));
        std::fs::write(new.path().join("added_tokens.json"), json!({"<more>": 700}).to_string()).unwrap();
        let new = open(&new);
        let found = words(&new);
        assert_eq!((found[0], found[1]), (legacy[1], 2));
        assert_ne!(found[2], found[0], "no space after a special token");
        assert_eq!(new.encode("<more>").unwrap(), [700]);
    }

    #[test]
    fn what_is_no_model_of_a_llama_is_refused() {
        let refused = |bytes: &[u8]| tokenizer_json(bytes, &Beside::read(None, None)).err().unwrap_or_default();
        let whole = model();
        for end in [0, 1, 7, whole.len() / 2, whole.len() - 1] {
            assert!(refused(&whole[..end]).contains("damaged"), "{end}: {}", refused(&whole[..end]));
        }
        // A unigram model: `model_type` 1 in the trainer's settings.
        let at = whole.windows(3).rposition(|bytes| bytes == [0x18, 0x02, 0x20]).unwrap();
        let mut unigram = whole.clone();
        unigram[at + 1] = 1;
        assert!(refused(&unigram).contains("not a BPE model"), "{}", refused(&unigram));
        // Settings of the normalizer under another number, as if there were none.
        let at = whole.windows(10).rposition(|bytes| bytes[0] == 0x1a && &bytes[4..] == b"identi").unwrap();
        let mut unsaid = whole.clone();
        unsaid[at] = 0x3a;
        assert!(refused(&unsaid).contains("changes texts in another way"), "{}", refused(&unsaid));
        // Another message with a piece that is there.
        let twice = [&whole[..], &[0x0a, 0x05, 0x0a, 0x03, b'<', b's', b'>']].concat();
        assert!(refused(&twice).contains("the piece \"<s>\" twice"), "{}", refused(&twice));
    }
}
