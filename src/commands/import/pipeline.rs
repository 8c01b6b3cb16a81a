//! Writes a pipeline that trains as a script does. What has no counterpart becomes a comment, and what may surprise a remark.
//! Independent of how scripts are read.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
    str::FromStr,
};

use super::{
    flags::{DEFAULTS, Meaning, TEMPLATES, meaning},
    script::{Call, Flag},
    values::{Devices, devices_of, in_comment, is_repository, missing, quoted, toml_value},
};

/// GPUs that LLaVA's scripts are written for.
const USUAL_DEVICES: usize = 8;

/// A pipeline file, and what its reader should know.
pub(super) struct Written {
    pub(super) text: String,
    pub(super) remarks: Vec<String>,
}

/// Writes the pipeline `name` for the call in `script`. `devices` is the number of GPUs, if the user says it.
pub(super) fn write(call: &Call, script: &str, name: &str, devices: Option<usize>) -> Written {
    let values = call.flags.iter().map(|flag| (flag.name.as_str(), flag)).collect();
    let mut writer = Writer { values, call, remarks: Vec::new(), text: String::new() };
    for line in &call.lost {
        writer.remarks.push(format!("line {line} belongs to no command: a comment ended the command before it"));
    }
    for (word, line) in &call.unread {
        let word = word.escape_debug();
        let text = format!("line {line}: `{word}` is not understood: the flags in it are missing, write them out");
        writer.remarks.push(text);
    }
    for line in &call.texts {
        writer.remarks.push(format!(
            "line {line}: what follows is text for a program, and names a training: it is not read as one"
        ));
    }
    for line in &call.others {
        writer
            .remarks
            .push(format!("line {line} starts another training, which is left out: give it a script of its own"));
    }
    let _ = writeln!(writer.text, "# Made by `imp-flow import llava` from {}.\n", in_comment(script));
    writer.pipeline(name, devices);
    Written { text: writer.text, remarks: writer.remarks }
}

struct Writer<'a> {
    /// The last of each flag, as the program takes it.
    values: BTreeMap<&'a str, &'a Flag>,
    call: &'a Call,
    remarks: Vec<String>,
    text: String,
}

impl Writer<'_> {
    fn line(&mut self, text: impl AsRef<str>) {
        self.text.push_str(text.as_ref());
        self.text.push('\n');
    }

    fn given(&self, flag: &str) -> Option<&str> {
        self.values.get(flag).map(|flag| flag.value.as_str())
    }

    /// The value of a flag, or what the program takes without it.
    fn value(&self, flag: &str) -> Option<&str> {
        let default = || DEFAULTS.iter().find(|(name, _)| *name == flag).map(|(_, value)| *value);
        self.given(flag).or_else(default)
    }

    fn is_true(&self, flag: &str) -> bool {
        self.value(flag).is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1")
    }

    /// Whether this is stage 1.
    fn trains_projector_only(&self) -> bool {
        self.is_true("tune_mm_mlp_adapter") && !self.is_true("lora_enable")
    }

    fn pipeline(&mut self, name: &str, devices: Option<usize>) {
        let only_projector = self.trains_projector_only();
        let joins = only_projector || self.given("pretrain_mm_mlp_adapter").is_some();
        self.line(format!("name = {}", quoted(name)));
        let seed = self.whole("seed", 42_u64);
        self.line(format!("seed = {seed}"));
        let llm = if joins { "llm" } else { "model" };
        self.model(llm, "model_name_or_path");
        if joins {
            self.model("vision", "vision_tower");
        }
        self.records(llm, only_projector);
        if only_projector {
            self.training("pretrain", devices);
        } else {
            if joins {
                self.projector();
            }
            self.training("finetune", devices);
        }
        self.without_counterpart();
    }

    /// A `download` stage for a model.
    fn model(&mut self, stage: &str, flag: &str) {
        let source = self.given(flag).map_or_else(|| missing(flag), Into::into);
        self.line(format!("\n[stages.{stage}]\nkind = \"download\""));
        let is_hub = is_repository(&source);
        let written = if is_hub { format!("hf://{source}") } else { source.clone() };
        let note = if is_hub { "add @COMMIT to get the same files everywhere" } else { "relative to this file" };
        self.line(format!("source = {}  # {note}", quoted(&written)));
        let is_clip = flag == "vision_tower" && source.to_lowercase().contains("clip");
        if is_hub && is_clip {
            self.line("files = [\"*.json\", \"pytorch_model.bin\"]  # CLIP is published like this");
        } else if is_hub {
            self.line("files = [\"*.json\", \"*.safetensors\"]  # add \"*.bin\" if there are no safetensors");
        }
        let is_known = ["siglip", "clip", "dinov2"].iter().any(|name| source.to_lowercase().contains(name));
        if flag == "vision_tower" && !is_known {
            self.line("# This must be a SigLIP, CLIP or DINOv2 encoder.");
            self.remarks.push(format!("the encoder {source} must be a SigLIP, a CLIP or a DINOv2"));
        }
        self.unknown_parts(flag, &source);
    }

    /// What only running the script would tell.
    fn unknown_parts(&mut self, flag: &str, value: &str) {
        if value.contains(['$', '`']) {
            let text = format!(
                "--{flag} {value} has a part that only running the script would tell: write it, or name it with --var"
            );
            self.remarks.push(text);
        }
    }

    /// The stages that make training records.
    fn records(&mut self, tokenizer: &str, only_projector: bool) {
        let path = self.given("data_path").map_or_else(|| missing("data_path"), Into::into);
        let file = path.rsplit('/').next().unwrap_or_default();
        self.line(format!(
            "\n[stages.annotations]\nkind = \"download\"\nsource = {}  # relative to this file",
            quoted(&path)
        ));
        self.unknown_parts("data_path", &path);
        let images = self.given("image_folder").map(ToString::to_string);
        if let Some(images) = &images {
            self.line(format!(
                "\n[stages.images]\nkind = \"download\"\nsource = {}  # relative to this file",
                quoted(images)
            ));
            self.unknown_parts("image_folder", images);
        }
        self.line("\n[stages.records]\nkind = \"preprocess\"\ndata = \"annotations\"");
        if images.is_some() {
            self.line("images = [\"images\"]");
        }
        self.line(format!("tokenizer = \"{tokenizer}\"\nannotations = {}", quoted(file)));
        let version = self.given("version").unwrap_or(if only_projector { "plain" } else { "v0" }).to_string();
        if let Some((_, ours)) = TEMPLATES.iter().find(|(theirs, _)| *theirs == version) {
            self.line(format!("template = \"{ours}\""));
        } else {
            self.line(format!("template = \"vicuna_v1\"  # --version {}: not known here", in_comment(&version)));
            self.remarks.push(format!("--version {version} is no template here: `vicuna_v1` stands in its place"));
        }
        match self.given("image_aspect_ratio").unwrap_or("square") {
            ratio @ ("square" | "pad" | "crop") => {
                let line = format!("image_aspect_ratio = \"{ratio}\"");
                self.line(line);
            }
            other => {
                let text = format!("--image_aspect_ratio {other} is not known here: `square` stands in its place");
                let line = format!("image_aspect_ratio = \"square\"  # {}", in_comment(&text));
                self.line(line);
                self.remarks.push(text);
            }
        }
        self.simple(&["model_max_length"], |meaning| matches!(meaning, Meaning::Both(_)));
    }

    /// The projector of stage 1, from its file, joined with the models that it was trained between.
    fn projector(&mut self) {
        let file = self.given("pretrain_mm_mlp_adapter").unwrap_or_default().to_string();
        let folder = file.rsplit_once('/').map_or(".", |(folder, _)| folder);
        self.line(format!(
            "\n[stages.projector]              # mm_projector.bin and config.json, as stage 1 left them\nkind = \"download\"\n\
             source = {}  # relative to this file\n\n[stages.joined]\nkind = \"merge\"\nmodel = \"projector\"\nllm = \"llm\"\n\
             vision = \"vision\"\ndtype = \"f32\"",
            quoted(folder)
        ));
        self.unknown_parts("pretrain_mm_mlp_adapter", &file);
        self.remarks
            .push("`joined` reads the projector's shape from the config.json beside it: see docs/PIPELINES.md".into());
    }

    fn projector_keys(&mut self) {
        let kind = self.value("mm_projector_type").unwrap_or("linear").to_string();
        self.line(format!("mm_projector_type = {}", quoted(&kind)));
        let layer = self.whole("mm_vision_select_layer", -2_i64);
        self.line(format!("mm_vision_select_layer = {layer}"));
    }

    fn training(&mut self, kind: &str, devices: Option<usize>) {
        self.line(format!("\n[stages.{kind}]\nkind = \"{kind}\""));
        if kind == "pretrain" {
            self.line("llm = \"llm\"\nvision = \"vision\"\ndata = \"records\"");
            self.projector_keys();
        } else {
            let joins = self.given("pretrain_mm_mlp_adapter").is_some();
            self.line(format!("model = \"{}\"\ndata = \"records\"", if joins { "joined" } else { "model" }));
            self.line(format!("mode = \"{}\"", if self.is_true("lora_enable") { "lora" } else { "full" }));
            if let Some(rate) = self.number("mm_projector_lr") {
                self.line(format!("projector_learning_rate = {rate}"));
            }
        }
        self.batch(devices);
        if self.is_true("bf16") || self.is_true("fp16") {
            let note = if self.is_true("fp16") { "  # --fp16: there is no fp16 here" } else { "" };
            self.line(format!("precision = \"bf16\"{note}"));
        }
        self.schedule();
        let flags = [
            "num_train_epochs",
            "learning_rate",
            "weight_decay",
            "warmup_ratio",
            "warmup_steps",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "max_grad_norm",
            "model_max_length",
            "group_by_modality_length",
        ];
        self.simple(&flags, |meaning| matches!(meaning, Meaning::Training(_) | Meaning::Both(_)));
        let runtime = ["gradient_checkpointing", "save_steps", "save_total_limit", "logging_steps"];
        self.simple(&runtime, |meaning| matches!(meaning, Meaning::Training(_)));
        if kind == "finetune" {
            self.simple(&["neftune_noise_alpha"], |meaning| matches!(meaning, Meaning::Training(_)));
        }
        if kind == "finetune" && self.is_true("lora_enable") {
            self.line("\n[stages.finetune.lora]");
            for (flag, key) in [("lora_r", "rank"), ("lora_alpha", "alpha"), ("lora_dropout", "dropout")] {
                if let Some(value) = self.number(flag) {
                    let note = self.note_of(flag);
                    self.line(format!("{key} = {value}{note}"));
                }
            }
        }
    }

    /// Samples per step: those of a device, times devices, times accumulated steps.
    fn batch(&mut self, devices: Option<usize>) {
        let each = self.whole("per_device_train_batch_size", 1_usize);
        let steps = self.whole("gradient_accumulation_steps", 1_usize);
        let by_launcher = devices_of(&self.call.launcher);
        // Who says another number means that of one machine, unless the launcher says how many that has.
        let of_a_node = |all: usize| by_launcher.map_or(all, |launcher| launcher.of_a_node.min(all));
        let said = devices.map(|all| Devices { all, of_a_node: of_a_node(all) }).or(by_launcher);
        let devices = said.map_or(USUAL_DEVICES, |devices| devices.all);
        let guess = if said.is_none() { " (assumed: --devices N says it)" } else { "" };
        let size = each.saturating_mul(steps).saturating_mul(devices);
        self.line(format!(
            "global_batch_size = {size}  # {each} on each of {devices} GPUs{guess}, {steps} accumulated"
        ));
        let Some(Devices { all, of_a_node }) = said else {
            let text =
                format!("the script does not say on how many GPUs it runs: {devices} are assumed; --devices N says it");
            return self.remarks.push(text);
        };
        self.line(format!("runtime.gpus = {of_a_node}  # fewer give the same result"));
        if all > of_a_node {
            self.remarks.push(format!(
                "the script trains on {all} GPUs of several machines: a stage has those of one, {of_a_node}, and takes the steps of the same size"
            ));
        }
    }

    fn schedule(&mut self) {
        let note = self.note_of("lr_scheduler_type");
        match self.value("lr_scheduler_type").unwrap_or("linear") {
            "cosine" => self.line(format!("lr_scheduler = \"cosine\"{note}")),
            "linear" => self.line(format!("lr_scheduler = \"linear\"{note}")),
            "constant" | "constant_with_warmup" => self.line("lr_scheduler = \"constant\""),
            other => {
                let text = format!("--lr_scheduler_type {other} is not known here: `cosine` stands in its place");
                let line = format!("lr_scheduler = \"cosine\"  # {}", in_comment(&text));
                self.line(line);
                self.remarks.push(text);
            }
        }
        let steps = self.whole("max_steps", -1_i64);
        if steps > 0 {
            self.line(format!("max_steps = {steps}"));
        }
    }

    /// Keys with the value of a flag.
    fn simple(&mut self, flags: &[&str], is_wanted: impl Fn(Meaning) -> bool) {
        for flag in flags {
            let Some(Meaning::Training(key) | Meaning::Both(key)) = meaning(flag).filter(|meaning| is_wanted(*meaning))
            else {
                continue;
            };
            let Some(value) = self.value(flag).map(ToString::to_string) else { continue };
            let note = self.note_of(flag);
            if let Some(value) = toml_value(&value) {
                self.line(format!("{key} = {value}{note}"));
            } else {
                self.line(format!("# {key} = ...  # --{flag} {}", in_comment(&value)));
                self.remarks.push(format!("--{flag} {value} is no number or truth value: `{key}` has its default"));
            }
        }
    }

    /// The whole number that a flag or the program says; `otherwise` if none does, with a remark if what is said is none.
    fn whole<T: FromStr + Display + Copy>(&mut self, flag: &str, otherwise: T) -> T {
        let Some(value) = self.value(flag).map(ToString::to_string) else { return otherwise };
        value.parse().unwrap_or_else(|_| {
            self.remarks.push(format!("--{flag} {value} is no such number: {otherwise} stands in its place"));
            otherwise
        })
    }

    /// A number as TOML; a remark if it is none.
    fn number(&mut self, flag: &str) -> Option<String> {
        let value = self.value(flag)?.to_string();
        let number = toml_value(&value);
        if number.is_none() {
            self.remarks.push(format!("--{flag} {value} is no number: its key has its default"));
        }
        number
    }

    /// Says that the program, and not the script, has a value.
    fn note_of(&self, flag: &str) -> &'static str {
        if self.given(flag).is_some() { "" } else { "  # the program's default" }
    }

    /// A comment for each flag that says nothing here.
    fn without_counterpart(&mut self) {
        let (mut nothing, mut unknown) = (Vec::new(), Vec::new());
        for flag in self.values.values() {
            let text = format!("--{} {}", in_comment(&flag.name), in_comment(&flag.value));
            match meaning(&flag.name) {
                Some(Meaning::Known) if self.unused(&flag.name).is_some() => {
                    let why = self.unused(&flag.name).unwrap_or_default();
                    nothing.push(format!("#   {text}: {why}"));
                }
                Some(Meaning::Training("neftune_noise_alpha")) if self.trains_projector_only() => {
                    unknown.push(format!("#   {text}: only `finetune` has such noise"));
                }
                Some(Meaning::Nothing(why)) => nothing.push(format!("#   {text}: {why}")),
                Some(Meaning::Yours(key)) => unknown.push(format!("#   {text}: {key}")),
                Some(_) => {}
                None => unknown.push(format!("#   {text} (line {})", flag.line)),
            }
        }
        for flag in ["mm_use_im_start_end", "mm_use_im_patch_token"].iter().filter(|flag| self.is_true(flag)) {
            unknown.push(format!("#   --{flag} True: an image is its patches here, without marks around it"));
        }
        if self.given("bits").is_some_and(|bits| bits != "16") {
            unknown.push(
                "#   --bits: give `model` the name of a stage that quantizes it, and adapters train on that".into(),
            );
        }
        if !nothing.is_empty() {
            self.line(format!("\n# Flags that need no counterpart:\n{}", nothing.join("\n")));
        }
        if !unknown.is_empty() {
            self.line(format!(
                "\n# Flags without a counterpart. The training is another one without them:\n{}",
                unknown.join("\n")
            ));
            let count = unknown.len();
            let have = if count == 1 { "1 flag has".into() } else { format!("{count} flags have") };
            self.remarks.push(format!("{have} no counterpart: see the end of the file"));
        }
    }
}

impl Writer<'_> {
    /// Why a flag that is known says nothing in this training, if so.
    fn unused(&self, flag: &str) -> Option<&'static str> {
        let (adapts, only_projector) = (self.is_true("lora_enable"), self.trains_projector_only());
        let joins = only_projector || self.given("pretrain_mm_mlp_adapter").is_some();
        match flag {
            "vision_tower" if !joins => Some("the model has its own encoder"),
            "mm_projector_type" | "mm_vision_select_layer" if !only_projector => {
                Some("the model has its own projector")
            }
            "mm_projector_lr" if only_projector => Some("only the projector trains, at `learning_rate`"),
            "lora_r" | "lora_alpha" | "lora_dropout" if !adapts => Some("there is no --lora_enable True"),
            "pretrain_mm_mlp_adapter" if only_projector => Some("the projector begins anew"),
            "tune_mm_mlp_adapter" if !only_projector => Some("the projector trains, too"),
            "max_steps" if self.given(flag).is_some_and(|steps| steps.starts_with('-')) => Some("there is no limit"),
            _ => None,
        }
    }
}
