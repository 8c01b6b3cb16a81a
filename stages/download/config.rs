//! The keys of `download`. Independent of how they are carried out.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::remote::archive::Format;
use crate::{Job, contract::keys::keys, net::verify::Check};

keys! {
    /// The keys of `download`.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct DownloadConfig {
        /// `hf://OWNER/REPO@REVISION`, `hf://datasets/OWNER/REPO@REVISION`, `https://...`, `s3://BUCKET/KEY`, a file or folder,
        /// or `builtin:shapes`, `builtin:tiny-phi`, `builtin:tiny-qwen2`, `builtin:tiny-phi3`, `builtin:tiny-siglip`,
        /// `builtin:tiny-clip`, `builtin:tiny-dinov2`.
        pub source: String,
        /// `hf://`, `s3://`: patterns of the files to fetch, such as `*.json` (default: all files).
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub files: Vec<String>,
        /// Expected SHA-256 of a single file, before it is unpacked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub sha256: Option<String>,
        /// Expected BLAKE3 of a single file, before it is unpacked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub blake3: Option<String>,
        /// Whether to unpack archives (`.zip`, `.tar`, `.tar.gz`, `.tar.zst`, `.tar.xz`), each in its place. Default: yes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub unpack: Option<bool>,
        /// Folder inside the artifact that receives everything.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub into: Option<String>,
        /// `builtin:shapes`: number of training images (1200).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub images: Option<usize>,
        /// `builtin:shapes`: number of evaluation images (160).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub eval_images: Option<usize>,
        /// `builtin:tiny-*`: sizes of the model.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub model: Option<ModelOptions>,
    }
}

keys! {
    /// `[model]`: sizes of a built-in model. Defaults are in brackets.
    #[derive(Debug, Clone, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct ModelOptions {
        /// Width of the residual stream (128 in the language model, 256 in the vision encoder).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub hidden_size: Option<usize>,
        /// Transformer blocks (4 in the language model, 2 in the vision encoder; the second to last one gives the features).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub layers: Option<usize>,
        /// Attention heads (8 in the language model, 4 in the vision encoder).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub heads: Option<usize>,
        /// `tiny-phi`, `tiny-qwen2`, `tiny-phi3`: size of the tokenizer's vocabulary (512).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub vocab_size: Option<usize>,
        /// `tiny-siglip`, `tiny-clip`, `tiny-dinov2`: width and height of an image in pixels (64).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub image_size: Option<usize>,
        /// `tiny-siglip`, `tiny-clip`, `tiny-dinov2`: width and height of a patch in pixels (32).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub patch_size: Option<usize>,
    }
}

impl DownloadConfig {
    /// The folder that receives everything.
    pub(super) fn folder(&self, job: &Job) -> PathBuf {
        self.into.as_deref().map_or_else(|| job.output(), |into| job.output().join(into))
    }

    /// The format of the file `name`, if it is an archive to unpack. It is the same for all sources.
    pub(super) fn archive(&self, name: &str) -> Option<Format> {
        Format::of(name).filter(|_| self.unpack.unwrap_or(true))
    }

    /// The hashes that a single file must have.
    pub(super) fn checks(&self) -> Vec<Check> {
        let sha256 = self.sha256.clone().map(Check::Sha256);
        sha256.into_iter().chain(self.blake3.clone().map(Check::Blake3)).collect()
    }
}
