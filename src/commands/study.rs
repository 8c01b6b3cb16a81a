//! `imp-flow report study`: the studies of a publication beside the cached results of the sweeps that repeat them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use imp_stages::{
    contract::published::{PublishedTable, Study},
    kinds,
};

use super::{
    report::{cached_results, models},
    session::{Request, Session, usage},
};
use crate::{
    cli::{Common, ReportStudyArgs},
    failure::Failure,
    pipeline::Diagnostic,
    report::{self, Format, StudyPoint},
};

/// The points of sweeps, by the name of the sweep.
type Sweeps = BTreeMap<String, Session>;

/// Shows all studies, with what the given sweeps, or those at the usual places, have measured.
pub(crate) fn report_study(args: &ReportStudyArgs, common: &Common) -> Result<ExitCode, Failure> {
    let studies = || kinds::tables().flat_map(|table| table.studies.iter().map(move |study| (table, study)));
    let files: Vec<PathBuf> = match args.files.as_slice() {
        [] => studies().map(|(_, study)| PathBuf::from(study.file)).filter(|file| file.is_file()).collect(),
        files => files.to_vec(),
    };
    let mut sweeps = Sweeps::new();
    for file in files {
        let known: Vec<&str> = studies().map(|(_, study)| study.sweep).collect();
        let (name, session) = open(&file, &known, args, common)?;
        if sweeps.insert(name.clone(), session).is_some() {
            let problem = Diagnostic::new(format!("two of the sweeps are named `{name}`"), None);
            return Err(usage(problem.help("give one of them at a time")));
        }
    }
    let mut shown = Vec::new();
    for (table, study) in studies() {
        shown.push((table, study, points(table, study, sweeps.get(study.sweep))?));
    }
    report::studies(&shown, Format::of(common.json, args.markdown));
    Ok(ExitCode::SUCCESS)
}

/// Opens a sweep whose name is one of `known`.
fn open(file: &Path, known: &[&str], args: &ReportStudyArgs, common: &Common) -> Result<(String, Session), Failure> {
    let request = Request { file: file.into(), overrides: args.overrides.clone(), sweep: true, device: None };
    let session = Session::open(request, common)?;
    let name = session.pipeline.name.clone();
    if !known.contains(&name.as_str()) {
        let message = format!("{} is named `{name}`, which is no published study", file.display());
        let help = format!("set `name` to that of the study it repeats: {}", known.join(", "));
        return Err(usage(Diagnostic::new(message, None).help(help)));
    }
    Ok((name, session))
}

/// The published settings and the points of the sweep, with what was measured of each.
fn points(table: &PublishedTable, study: &Study, sweep: Option<&Session>) -> Result<Vec<StudyPoint>, Failure> {
    let published = study.rows.iter().map(|row| StudyPoint { name: row.point.into(), measured: Vec::new() });
    let mut all: Vec<StudyPoint> = published.collect();
    let Some(session) = sweep else { return Ok(all) };
    let cached = cached_results(session)?;
    for (number, point) in session.pipeline.points.iter().enumerate() {
        let own = |stage: &str| {
            let mut stages = session.pipeline.stages.iter();
            // What all points share measures nothing that the study compares.
            let is_compared = |owners: usize| owners == 1 || owners < session.pipeline.points.len();
            let of_point = stages.any(|decl| {
                let has = decl.owners.iter().any(|(owner, _)| *owner == number);
                decl.name == stage && has && is_compared(decl.owners.len())
            });
            cached.get(stage).filter(|_| of_point)
        };
        let measured = models(table, &session.pipeline, own);
        match all.iter_mut().find(|known| known.name == point.label) {
            Some(known) => known.measured = measured,
            None => all.push(StudyPoint { name: point.label.clone(), measured }),
        }
    }
    Ok(all)
}
