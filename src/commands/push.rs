//! `imp-flow push`.

use std::{
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use imp_stages::push::{CARD, LocalFile, Options, Outlook, Push, Repository};

use super::{
    card,
    session::{Session, usage},
};
use crate::{
    cli::{Common, PushArgs},
    failure::Failure,
    pipeline::Diagnostic,
    report::{self, Bar, CARD_MARK, Pushed},
    scheduler::Verdict,
    store::{Receipt, StoreError},
};

/// Pushes the result of a stage to a hub, with a card that says what it is and how it was made.
pub(crate) fn push(args: &PushArgs, common: &Common) -> Result<ExitCode, Failure> {
    let repository = Repository::parse(&args.to).map_err(|message| usage(Diagnostic::new(message, None)))?;
    let (session, index, receipt) = Session::of_result(&args.result, common)?;
    let is_present = matches!(session.verdict(index)?, Verdict::Hit { key } if key == receipt.key());
    if args.card {
        report::print_raw(&card::of(&session, index, &receipt, &repository, is_present)?);
        return Ok(ExitCode::SUCCESS);
    }
    let warn = |message: &str| report::note(&format!("note: {message}"), common.style());
    let push = Push::new(repository.clone(), &warn).map_err(Failure::Stage)?;
    // Garbage collection must not take the files away, however long this takes.
    let mut lease = session.store.lease(&format!("push-{}", std::process::id()))?;
    lease.add(&[receipt.key()], &[receipt.output.digest])?;
    let mut files = files(&session, &receipt)?;
    let folder = tempfile::tempdir().map_err(io("can't make a folder for the card"))?;
    let kept_card =
        add_card(&push, &mut files, folder.path(), || card::of(&session, index, &receipt, &repository, is_present))?;
    let outlook = push.outlook(&files).map_err(Failure::Stage)?;
    let name = &session.pipeline.stages[index].name;
    let shown = Pushed {
        stage: name,
        to: &repository,
        outlook: &outlook,
        delete: args.delete,
        private: args.private,
        kept_card,
    };
    if !args.yes || is_done(&outlook, args.delete) {
        report::outlook_of_push(&shown, args.yes, common.style());
        return Ok(ExitCode::SUCCESS);
    }
    let message = args.message.clone().unwrap_or_else(|| format!("{name} of {}, by imp-flow", session.pipeline.name));
    let options = Options { private: args.private, delete: args.delete, message };
    let page = with_bar(&outlook, common, |sent| push.run(&outlook, &options, sent)).map_err(Failure::Stage)?;
    report::pushed(&shown, &page, common.style());
    Ok(ExitCode::SUCCESS)
}

fn is_done(outlook: &Outlook, delete: bool) -> bool {
    !outlook.creates && outlook.changed.is_empty() && (!delete || outlook.stale.is_empty())
}

/// The files of a result, each of which is what its listing says.
fn files(session: &Session, receipt: &Receipt) -> Result<Vec<LocalFile>, Failure> {
    let digest = receipt.output.digest;
    let listing = session.store.tree(digest)?;
    let folder = session.store.input_folder(digest)?.into_parts().0.ok_or_else(|| StoreError::Refused {
        path: session.store.tree_path(digest),
        what: "files of this result are lost: run the pipeline again".into(),
    })?;
    let file =
        |file: crate::store::TreeFile| LocalFile { path: folder.join(&file.path), name: file.path, bytes: file.size };
    Ok(listing.into_iter().map(file).collect())
}

/// Adds a card to the files, in place of one that a base model had, unless a person wrote the one at the hub. Returns whether that
/// stays.
fn add_card(
    push: &Push<'_>,
    files: &mut Vec<LocalFile>,
    folder: &Path,
    card: impl FnOnce() -> Result<String, Failure>,
) -> Result<bool, Failure> {
    files.retain(|file| file.name != CARD);
    if push.card().map_err(Failure::Stage)?.is_some_and(|there| !there.contains(CARD_MARK)) {
        return Ok(true);
    }
    let (text, path) = (card()?, folder.join(CARD));
    std::fs::write(&path, &text).map_err(io("can't write the card"))?;
    files.push(LocalFile { name: CARD.into(), path, bytes: text.len() as u64 });
    Ok(false)
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> Failure {
    let what = what.to_string();
    move |source| Failure::Io { what, source }
}

/// Shows how much was sent while `push` runs.
fn with_bar<T>(outlook: &Outlook, common: &Common, push: impl FnOnce(&Arc<AtomicU64>) -> T) -> T {
    let total = outlook.changed.iter().map(|file| file.bytes).sum();
    let (sent, ended, bar) = (Arc::default(), AtomicBool::new(false), Bar::bytes("pushing", common.style()));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Relaxed) {
                bar.at(AtomicU64::load(&sent, Relaxed), total);
                thread::sleep(Duration::from_millis(200));
            }
        });
        let _end = End(&ended);
        push(&sent)
    })
}

/// Ends the bar, also if the push panics.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
