//! The records that a training stage is given, and whether they are made for its model. Independent of how they are used.

use std::path::{Path, PathBuf};

use imp_model::config::ImpConfig;

use crate::{
    Job, StageError,
    data::{mixture::Mixture, records::RecordSet},
    text::{
        identity::{check_tokenizer, identity},
        template::Template,
        tokenizer::TextTokenizer,
    },
};

/// The records of a training stage, and the tokenizer of its model.
pub(crate) struct Inputs {
    pub(crate) data: Mixture,
    pub(crate) validation: Option<Mixture>,
    tokenizer: Option<TextTokenizer>,
    folder: PathBuf,
}

impl Inputs {
    /// Opens the inputs `data` and `validation` for a model whose tokenizer is in `folder`.
    ///
    /// # Errors
    /// If a set was made with another tokenizer, or in other ways does not fit the others.
    pub(crate) fn open(job: &Job, weights: &[f64], folder: &Path) -> Result<Self, StageError> {
        let (named, tokenizer) = (job.named(folder), tokenizer(job, folder)?);
        let open = |(name, folder): (String, &Path)| open(job, &name, folder, tokenizer.as_ref());
        let only = job.optional_input("data").is_some();
        let name = |number: usize| if only { "data".into() } else { format!("data[{number}]") };
        let data = job.inputs("data").enumerate().map(|(number, folder)| (name(number), folder));
        let data = Mixture::new(data.map(open).collect::<Result<_, StageError>>()?, weights)?;
        let validation = job
            .optional_input("validation")
            .map(|folder| Mixture::new(vec![open(("validation".into(), folder))?], &[]));
        let validation = validation.transpose()?;
        let differs =
            |validation: &Mixture| validation.images() > 0 && validation.aspect_ratio() != data.aspect_ratio();
        if data.images() > 0 && validation.as_ref().is_some_and(differs) {
            return Err(StageError::failed(
                "the records of `validation` have another `image_aspect_ratio` than those of `data`: their loss would be that of \
                 images which the model is not shown otherwise",
                "give the preprocess stages of `data` and `validation` the same `image_aspect_ratio`",
            ));
        }
        Ok(Self { data, validation, tokenizer, folder: named })
    }

    /// Notes in `config` what later stages have to know of the training: the template of its conversations and its tokenizer.
    /// Says so if the model was trained in another template before.
    ///
    /// # Errors
    /// If the conversations are in several templates, or if the tokenizer is not that of the model's earlier training.
    pub(crate) fn note(&self, config: &mut ImpConfig, job: &Job) -> Result<(), StageError> {
        let before = config.conversation_template.as_deref().and_then(Template::by_name);
        if let Some(tokenizer) = &self.tokenizer {
            check_tokenizer(tokenizer, config, &self.folder)?;
        }
        let now = self.data.conversation_template()?;
        let held_out = self.validation.as_ref().map(Mixture::conversation_template).transpose()?.flatten();
        if let (Some(held_out), Some(now)) = (held_out, &now)
            && held_out != *now
        {
            job.caution(format!(
                "the records of `validation` are in the template `{held_out}`, and those of `data` in `{now}`: their loss says little of \
                 what the model learns"
            ));
        }
        if let (Some(before), Some(now)) = (before, &now)
            && before.name() != now
        {
            job.caution(format!(
                "the model was trained in the template `{}` and now is in `{now}`: from here on it is asked in `{now}`",
                before.name()
            ));
        }
        if let Some(now) = now {
            config.conversation_template = Some(now);
        }
        let template = config.conversation_template.as_deref().and_then(Template::by_name).unwrap_or(Template::Plain);
        if let Some(tokenizer) = &self.tokenizer {
            config.trained_tokenizer = Some(identity(&prepared(tokenizer, template)?));
        }
        Ok(())
    }
}

/// Opens the record set of the input `name` for a model whose tokenizer is in `folder`; `None` if the input is not given.
///
/// # Errors
/// If it was made with another tokenizer, or can't be read.
pub(crate) fn record_set(job: &Job, name: &str, folder: &Path) -> Result<Option<Mixture>, StageError> {
    let Some(records) = job.optional_input(name) else { return Ok(None) };
    let set = open(job, name, records, tokenizer(job, folder)?.as_ref())?;
    Mixture::new(vec![set], &[]).map(Some)
}

/// The tokenizer in the folder of a model, if there is one.
fn tokenizer(job: &Job, folder: &Path) -> Result<Option<TextTokenizer>, StageError> {
    let named = job.named(folder);
    if TextTokenizer::is_in(folder) {
        return TextTokenizer::open(folder, &named).map(Some);
    }
    job.caution(format!(
        "{}: there is no tokenizer, so it is not known whether the records are made for this model",
        named.display()
    ));
    Ok(None)
}

fn open(job: &Job, name: &str, folder: &Path, tokenizer: Option<&TextTokenizer>) -> Result<RecordSet, StageError> {
    let set = RecordSet::open(folder).map_err(|error| job.renamed(error))?;
    check(job, name, &set, tokenizer)?;
    Ok(set)
}

fn prepared(tokenizer: &TextTokenizer, template: Template) -> Result<TextTokenizer, StageError> {
    let mut tokenizer = tokenizer.clone();
    template.prepare(&mut tokenizer)?;
    Ok(tokenizer)
}

/// Checks that the ids of `set` mean to the model what they meant to the tokenizer that made them.
fn check(job: &Job, name: &str, set: &RecordSet, tokenizer: Option<&TextTokenizer>) -> Result<(), StageError> {
    let Some(tokenizer) = tokenizer else { return Ok(()) };
    let (Some(theirs), Some(template)) = (&set.meta().tokenizer, Template::by_name(&set.meta().template)) else {
        job.caution(format!(
            "the records of `{name}` don't say which tokenizer made them (an older version of imp-flow did not note it), so it is \
             not known whether they are made for this model: run their preprocess stage again"
        ));
        return Ok(());
    };
    let ours = prepared(tokenizer, template).map(|tokenizer| identity(&tokenizer));
    if ours.is_ok_and(|ours| ours.agrees_with(theirs)) {
        return Ok(());
    }
    Err(StageError::failed(
        format!(
            "the records of `{name}` were made with another tokenizer than this model's: their ids mean other words to it"
        ),
        "in the preprocess stage of these records, set `tokenizer` to the stage that gives this language model",
    ))
}
