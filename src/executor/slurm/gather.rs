//! Collects questions that come within a moment of each other, so that they can be answered together. Independent of what is asked.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

/// The time without another question after which those that are there are answered, and the longest that one waits for others.
const QUIET: Duration = Duration::from_millis(300);
const LONGEST: Duration = Duration::from_secs(5);

/// The questions that wait for others.
#[derive(Debug)]
pub(super) struct Gather<Q, A>(Arc<Mutex<Inner<Q, A>>>);

#[derive(Debug)]
struct Inner<Q, A> {
    waiting: Vec<(u64, Question<Q, A>)>,
    /// How many there have been.
    count: u64,
    is_collecting: bool,
}

/// A question, and who waits for its answer.
#[derive(Debug)]
pub(super) struct Question<Q, A> {
    pub(super) about: Q,
    answer: oneshot::Sender<A>,
}

impl<Q, A> Question<Q, A> {
    /// Whether nobody waits for the answer any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.answer.is_closed()
    }

    /// Gives the answer. Nobody may be there any more.
    pub(super) fn answer(self, answer: A) {
        let _ = self.answer.send(answer);
    }
}

/// A question that was asked.
pub(super) struct Asked<Q, A> {
    gather: Gather<Q, A>,
    number: u64,
    answered: oneshot::Receiver<A>,
}

impl<Q, A> Clone for Gather<Q, A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Q, A> Default for Gather<Q, A> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Inner { waiting: Vec::new(), count: 0, is_collecting: false })))
    }
}

impl<Q: Send + 'static, A: Send + 'static> Gather<Q, A> {
    fn inner(&self) -> MutexGuard<'_, Inner<Q, A>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, with those who ask at about the same time. The first of them says how all are answered.
    pub(super) fn ask<F>(
        &self,
        about: Q,
        answer_all: impl FnOnce(Vec<Question<Q, A>>) -> F + Send + 'static,
    ) -> Asked<Q, A>
    where
        F: Future<Output = ()> + Send,
    {
        let (answer, answered) = oneshot::channel();
        let mut inner = self.inner();
        inner.count += 1;
        let number = inner.count;
        inner.waiting.push((number, Question { about, answer }));
        if !std::mem::replace(&mut inner.is_collecting, true) {
            let gather = self.clone();
            tokio::spawn(async move { answer_all(gather.collect().await).await });
        }
        drop(inner);
        Asked { gather: self.clone(), number, answered }
    }

    /// Waits until no more questions come.
    async fn collect(self) -> Vec<Question<Q, A>> {
        let (began, mut seen) = (Instant::now(), 0);
        loop {
            {
                let mut inner = self.inner();
                if inner.count == seen || began.elapsed() > LONGEST {
                    inner.is_collecting = false;
                    return std::mem::take(&mut inner.waiting).into_iter().map(|(_, question)| question).collect();
                }
                seen = inner.count;
            }
            tokio::time::sleep(QUIET).await;
        }
    }
}

impl<Q: Send + 'static, A: Send + 'static> Asked<Q, A> {
    /// The answer. `None` if it was given up.
    pub(super) async fn answer(&mut self) -> Option<A> {
        (&mut self.answered).await.ok()
    }

    /// Takes the question back. `false` if it is too late.
    pub(super) fn withdraw(&self) -> bool {
        let waiting = &mut self.gather.inner().waiting;
        let before = waiting.len();
        waiting.retain(|(number, _)| *number != self.number);
        waiting.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn questions_are_answered_together_and_can_be_taken_back() {
        let gather = Gather::<u32, (u32, usize)>::default();
        let all = |questions: Vec<Question<u32, (u32, usize)>>| async move {
            let count = questions.len();
            for question in questions {
                let about = question.about;
                question.answer((about, count));
            }
        };
        let [mut first, mut second, mut third] = [1, 2, 3].map(|about| gather.ask(about, all));
        assert!(second.withdraw() && !second.withdraw());
        assert_eq!((first.answer().await, third.answer().await), (Some((1, 2)), Some((3, 2))));
        assert_eq!(second.answer().await, None);
        assert!(!first.withdraw(), "it was answered");
        assert_eq!(gather.ask(4, all).answer().await, Some((4, 1)));
    }

    #[tokio::test]
    async fn who_does_not_wait_any_more_is_known() {
        let gather = Gather::<u32, u32>::default();
        let (told, given_up) = oneshot::channel();
        let asked = gather.ask(1, |questions: Vec<Question<u32, u32>>| async move {
            let _ = told.send(questions.iter().all(Question::is_given_up));
        });
        drop(asked);
        assert_eq!(given_up.await, Ok(true));
    }
}
