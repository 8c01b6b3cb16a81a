//! Submits stages that become ready at the same time, and ask for the same, as one array of jobs: one call, and one entry in the queue.
//! Independent of how an array is made and of what comes after.

use std::{io, path::Path};

use super::{
    gather::{Gather, Question},
    refusal::Refusal,
    submit::{Attempt, Submitted, submit},
};

/// The most elements of an array. Slurm's own limit (`MaxArraySize`) is 1001 by default.
const MOST: usize = 1000;

/// The stages that wait to be submitted with others.
pub(super) type Arrays = Gather<Attempt, io::Result<Submitted>>;

type Waiting = Question<Attempt, io::Result<Submitted>>;

/// Submits stages that came at about the same time.
pub(super) async fn submit_all(waiting: Vec<Waiting>) {
    for group in groups(waiting) {
        submit_group(group).await;
    }
}

/// Stages that ask for the same, in the order in which they came.
fn groups(waiting: Vec<Waiting>) -> Vec<Vec<Waiting>> {
    let asked = |waiting: &Waiting| {
        let Attempt { request, environment, .. } = &waiting.about;
        let script = request.stage(Path::new(""), Path::new(""), "");
        (request.arguments("", "", &request.signal()), request.gpus, script, environment.clone())
    };
    let mut groups: Vec<Vec<Waiting>> = Vec::new();
    for new in waiting {
        let fits = |group: &&mut Vec<Waiting>| group.len() < MOST && asked(&group[0]) == asked(&new);
        match groups.iter_mut().find(fits) {
            Some(group) => group.push(new),
            None => groups.push(vec![new]),
        }
    }
    groups
}

/// Submits stages that ask for the same, all at once. Where that is too many for Slurm, half as many, and so on: what it takes of
/// them it takes with few calls. What it refuses for another reason it would refuse each of them.
async fn submit_group(mut rest: Vec<Waiting>) {
    let mut size = rest.len();
    loop {
        // What a run has given up meanwhile `sbatch` is not told.
        rest.retain(|waiting| !waiting.is_given_up());
        if rest.is_empty() {
            return;
        }
        let after = rest.split_off(size.min(rest.len()));
        let mut part = std::mem::replace(&mut rest, after);
        let attempts: Vec<&Attempt> = part.iter().map(|waiting| &waiting.about).collect();
        match submit(&attempts).await {
            Ok(Ok(submitted)) => part.into_iter().zip(submitted).for_each(|(waiting, job)| waiting.answer(Ok(job))),
            Ok(Err(refusal)) if part.len() > 1 && refusal.is_for_fewer() => {
                size = part.len() / 2;
                rest.splice(0..0, part);
            }
            Ok(Err(refusal)) => {
                refuse(part.into_iter().chain(std::mem::take(&mut rest)).collect(), &refusal);
            }
            Err(error) if part.len() > 1 => {
                tracing::warn!("stages are submitted one by one: {error}");
                size = 1;
                rest.splice(0..0, part);
            }
            Err(error) => {
                if let Some(alone) = part.pop() {
                    alone.answer(Err(error));
                }
            }
        }
    }
}

/// Tells stages that ask for the same why they are not submitted: the first all of it.
fn refuse(waiting: Vec<Waiting>, refusal: &Refusal) {
    let Some(first) = waiting.first().map(|waiting| waiting.about.request.name.clone()) else { return };
    for (place, waiting) in waiting.into_iter().enumerate() {
        let submitted = match refusal {
            Refusal::Full(why) => Submitted::Full(why.clone()),
            refusal if place == 0 => Submitted::Refused(refusal.outcome(&waiting.about.request.asked())),
            refusal => Submitted::Refused(refusal.outcome_beside(&first)),
        };
        waiting.answer(Ok(submitted));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        sync::{Arc, Mutex},
        time::Duration,
    };

    use imp_stages::contract::bytes::ByteSize;

    use super::*;
    use crate::executor::slurm::Request;

    fn attempt(name: &str, cpus: usize) -> Attempt {
        let request = Request {
            name: name.into(),
            cpus: Some(cpus),
            gpus: 0,
            memory: Some(ByteSize(1)),
            options: imp_stages::contract::executor::SlurmOptions::default(),
            save: Duration::from_secs(90),
        };
        Attempt { request, work: "w".into(), environment: Vec::new(), job: Vec::new(), reached: None, stuck: 0 }
    }

    #[tokio::test]
    async fn only_stages_that_ask_for_the_same_become_one_array() {
        let (arrays, names) = (Arrays::default(), Arc::new(Mutex::new(Vec::new())));
        let name_of = |waiting: &Waiting| waiting.about.request.name.clone();
        let noted = names.clone();
        let note = move |waiting: Vec<Waiting>| {
            let groups = groups(waiting).iter().map(|group| group.iter().map(name_of).collect::<Vec<_>>()).collect();
            *noted.lock().unwrap() = groups;
            async {}
        };
        let mut asked =
            [("a", 1), ("b", 2), ("c", 1)].map(|(name, cpus)| arrays.ask(attempt(name, cpus), note.clone()));
        assert!(asked[0].answer().await.is_none(), "nobody answers");
        assert_eq!(*names.lock().unwrap(), [vec!["a", "c"], vec!["b"]]);
    }
}
