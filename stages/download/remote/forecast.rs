//! Predicts what a source will deliver, before anything is downloaded: within seconds, or not at all. Independent of how
//! files are downloaded.

use std::{sync::mpsc, thread, time::Duration};

use imp_model::{config::ConfigFile, weights::is_weights};

use super::{cache, hub::HubSource};
use crate::{
    StageError,
    contract::forecast::Forecast,
    model_folder::outlook_of_config,
    net::{
        http::{Access, Client, Policy, Watch},
        hub::Hub,
        listing::RemoteFile,
        s3::{S3Source, Store},
        transfer,
    },
    text::json_records::short,
};

/// Time limit of a forecast; the user is waiting for it.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Time limit of each step of a request: shorter, so that the reason names the host.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// One short attempt.
fn policy() -> Result<Policy, StageError> {
    Ok(Policy { attempts: 1, timeout: REQUEST_TIMEOUT, ..Policy::of_this_machine()? })
}

/// Never stops and never warns: a source that can't be reached only lacks a forecast.
struct Quiet;

impl Watch for Quiet {
    fn stopped(&self) -> bool {
        false
    }

    fn warn(&self, _: String) {}
}

/// The forecast that `work` makes in time; an empty one otherwise, or without a network.
fn within_time(limit: Duration, work: impl FnOnce() -> Result<Forecast, StageError> + Send + 'static) -> Forecast {
    if Hub::from_env().offline {
        return unknown("HF_HUB_OFFLINE is set");
    }
    let (answer, wait) = mpsc::channel();
    // Abandoned if too slow: resolving a name can take longer than a request's time limit.
    thread::spawn(move || drop(answer.send(work())));
    match wait.recv_timeout(limit) {
        Ok(Ok(forecast)) => forecast,
        Ok(Err(error)) => {
            tracing::debug!(%error, "no forecast from the source");
            // The stage will try more often than once.
            unknown(error.to_string().trim_start_matches("gave up after 1 attempts: "))
        }
        Err(_) => unknown(&format!("the source did not answer within {} seconds", limit.as_secs())),
    }
}

/// A forecast without a size.
fn unknown(why: &str) -> Forecast {
    Forecast { unknown: Some(short(why)), ..Forecast::default() }
}

/// Forecasts a hub's repository: its size, and the model in it.
pub(in crate::download) fn hub(source: HubSource, files: Vec<String>) -> Forecast {
    let hub = Hub::from_env();
    if hub.offline {
        return repository(&hub, &source, &files).unwrap_or_else(|error| unknown(&error.to_string()));
    }
    within_time(TIMEOUT, move || repository(&hub, &source, &files))
}

fn repository(hub: &Hub, source: &HubSource, files: &[String]) -> Result<Forecast, StageError> {
    let client = Client::new(policy()?, hub.access());
    let listing = source.list(hub, files, &client, &Quiet)?;
    // For a forecast, a local file of the right size counts as present, without hashing it.
    let cached = |file: &RemoteFile| {
        cache::find(hub, source, listing.commit.as_ref()?, &RemoteFile { checks: Vec::new(), ..file.clone() })
    };
    let download = listing.files.iter().filter(|file| cached(file).is_none()).map(|file| file.size).sum();
    let config = if let Some((_, path)) = listing.local.iter().find(|(name, _)| name == "config.json") {
        std::fs::read_to_string(path).map_err(StageError::io(path))?
    } else if let Some(file) = listing.files.iter().find(|file| file.name == "config.json") {
        client.retry(&Quiet, |attempt| attempt.get_text(&file.url))?
    } else {
        return Ok(Forecast { download, ..Forecast::default() });
    };
    let local = listing.local.iter().map(|(name, path)| (name, std::fs::metadata(path).ok().map(|data| data.len())));
    let sizes = listing.files.iter().map(|file| (&file.name, file.size)).chain(local);
    let weights = sizes.filter(|(name, _)| is_weights(name)).filter_map(|(_, size)| size).sum();
    let file = ConfigFile::parse(config.as_bytes(), "config.json".as_ref());
    let outlook = file.map(|file| outlook_of_config(&file, weights)).unwrap_or_default();
    Ok(Forecast { outlook, download, ..Forecast::default() })
}

/// Forecasts a file on a web server: its size.
pub(in crate::download) fn url(url: &str) -> Forecast {
    let file = RemoteFile::new("", url.into());
    within_time(TIMEOUT, move || sizes(&Client::new(policy()?, Access::Open), &[file]))
}

/// Forecasts an object store: the size of all requested objects.
pub(in crate::download) fn s3(source: S3Source, files: Vec<String>) -> Forecast {
    within_time(TIMEOUT, move || {
        let store = Store::from_env(&source)?;
        let client = Client::new(policy()?, Access::Signed(store.clone()));
        let listing = source.list(&store, &files, &client, &Quiet)?;
        sizes(&client, &listing.files)
    })
}

/// The sum of the files' sizes. The server is asked for sizes that are not listed.
fn sizes(client: &Client, files: &[RemoteFile]) -> Result<Forecast, StageError> {
    let size = |file: &RemoteFile| match file.size {
        Some(size) => Ok(Some(size)),
        None => Ok(client.retry(&Quiet, |attempt| transfer::probe(attempt, file))?.size),
    };
    let known: Vec<Option<u64>> = files.iter().map(size).collect::<Result<_, StageError>>()?;
    Ok(Forecast { download: known.into_iter().sum(), ..Forecast::default() })
}

#[cfg(test)]
mod tests {
    use super::{super::server, *};

    #[test]
    fn a_source_that_does_not_answer_has_an_unknown_size_with_a_reason() {
        let (silent, _open) = server::silent();
        let short = Policy { attempts: 1, timeout: Duration::from_millis(50), ..Policy::default() };
        for (address, words) in [(silent, " does not answer"), ("http://127.0.0.1:1".into(), " can't be reached (")] {
            let (file, policy) = (RemoteFile::new("", format!("{address}/a.zip")), short.clone());
            let client = Client::new(policy, Access::Open);
            let forecast = within_time(TIMEOUT, move || sizes(&client, &[file]));
            let why = forecast.unknown.unwrap_or_default();
            assert!(why.starts_with("127.0.0.1:") && why.contains(words), "{why}");
        }
        let forever = || {
            thread::park();
            Ok(Forecast::default())
        };
        let why = within_time(Duration::ZERO, forever).unknown.unwrap_or_default();
        assert_eq!(why, "the source did not answer within 0 seconds");
    }
}
