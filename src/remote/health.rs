//! What went wrong with a remote cache in this run: said once, and not tried again. Independent of what it was.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{Address, Trouble};
use crate::store::Digest;

/// After so many results that can't be used, none is asked for any more.
const MOST_BAD: usize = 3;

/// The state of a remote cache in this run.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Whether it is left alone.
    broken: bool,
    /// Results that could not be used.
    bad: usize,
    /// Keys and objects that are there, and not what their names say.
    distrusted: HashSet<Digest>,
    warned: bool,
    warning: Option<String>,
}

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_broken(&self) -> bool {
        self.state().broken
    }

    /// How many results could not be used.
    pub(super) fn bad(&self) -> usize {
        self.state().bad
    }

    /// Whether no more results are asked for. Sending goes on, and replaces them.
    pub(super) fn is_tired(&self) -> bool {
        let state = self.state();
        state.broken || state.bad >= MOST_BAD
    }

    pub(super) fn distrust(&self, digest: Digest) {
        self.state().distrusted.insert(digest);
    }

    pub(super) fn is_distrusted(&self, digest: Digest) -> bool {
        self.state().distrusted.contains(&digest)
    }

    pub(super) fn trust(&self, digest: Digest) {
        self.state().distrusted.remove(&digest);
    }

    pub(super) fn note(&self, address: &Address, trouble: &Trouble) {
        let mut state = self.state();
        let warning = match trouble {
            Trouble::Stopped => return,
            Trouble::Result(what) => {
                state.bad += 1;
                format!("the result in the remote cache {address} can't be used: {what}; it is not taken from there")
            }
            Trouble::Place(what) => {
                state.broken = true;
                format!("the remote cache {address} can't be used: {what}; this run goes on without it")
            }
            Trouble::Here(error) => {
                state.broken = true;
                format!("the remote cache {address} is not used any more in this run: {error}")
            }
        };
        if !state.warned {
            state.warned = true;
            state.warning = Some(warning);
        }
    }

    pub(super) fn take_warning(&self) -> Option<String> {
        self.state().warning.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_said_once() {
        let (health, address) = (Health::default(), Address::Bucket("b".into()));
        let note = |trouble: Trouble| {
            health.note(&address, &trouble);
            health.take_warning()
        };
        assert_eq!(note(Trouble::Stopped), None);
        let words = "the result in the remote cache s3://b can't be used: x; it is not taken from there";
        assert_eq!(note(Trouble::Result("x".into())).as_deref(), Some(words));
        assert!(!health.is_tired());
        assert_eq!(note(Trouble::Result("x".into())), None);
        assert_eq!(note(Trouble::Result("x".into())), None);
        assert!(health.is_tired() && !health.is_broken());
        assert_eq!(note(Trouble::Place("x".into())), None);
        assert!(health.is_broken());
    }
}
