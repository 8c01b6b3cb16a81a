//! A connection whose client must take what it is sent: one that takes nothing for long is closed, and its place is free for another.
//! One that still sends when all is said is heard out for a while. Independent of what is sent.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until},
};

/// A client that sends nothing for so long after the last word has nothing more to send.
const SILENCE: Duration = Duration::from_secs(1);
/// How long, and how many bytes, a client may still send then: no longer than the head of a request may take, so that who has no key
/// can't hold a place for longer by it.
const REST_TIME: Duration = Duration::from_secs(10);
const REST: usize = 64_000_000;

/// A stream whose writes fail once the other side has taken nothing for a time.
pub(super) struct Patient<S> {
    stream: S,
    patience: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
    /// After the last word.
    rest: Option<Rest>,
}

/// What a client still sends after the last word, which is thrown away. Were the connection closed with something unread, the client
/// would lose that word: a refusal that comes before the whole request was sent.
struct Rest {
    began: Instant,
    bytes: usize,
    waiting: Pin<Box<Sleep>>,
}

impl Rest {
    fn new() -> Self {
        Self { began: Instant::now(), bytes: 0, waiting: Box::pin(sleep(SILENCE)) }
    }

    /// Reads until there is no more, or enough of it.
    fn read<S: AsyncRead + Unpin>(&mut self, mut stream: Pin<&mut S>, context: &mut Context<'_>) -> Poll<()> {
        let end = self.began + REST_TIME;
        let mut space = [MaybeUninit::uninit(); 16 << 10];
        while self.bytes < REST && Instant::now() < end {
            let mut buffer = ReadBuf::uninit(&mut space);
            match stream.as_mut().poll_read(context, &mut buffer) {
                Poll::Pending => return self.waiting.as_mut().poll(context),
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => self.bytes += buffer.filled().len(),
                // Its end, or nothing that could be helped.
                Poll::Ready(_) => break,
            }
            self.waiting = Box::pin(sleep_until(end.min(Instant::now() + SILENCE)));
        }
        Poll::Ready(())
    }
}

impl<S> Patient<S> {
    pub(super) fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, waiting: None, rest: None }
    }
}

impl<S: AsyncWrite + Unpin> Patient<S> {
    /// What `write` does, or an error if it has waited too long.
    fn within<T>(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let written = write(Pin::new(&mut self.stream), context);
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
        match waiting.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.within(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.within(context, |stream, context| stream.poll_write_vectored(context, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.within(context, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.rest.is_none() {
            ready!(self.within(context, AsyncWrite::poll_shutdown))?;
        }
        let Self { stream, rest, .. } = &mut *self;
        rest.get_or_insert_with(Rest::new).read(Pin::new(stream), context).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn who_takes_nothing_is_given_up() {
        let (ours, theirs) = duplex(8);
        let mut stream = Patient::new(ours, Duration::from_millis(20));
        assert!(stream.write_all(b"12345678").await.is_ok(), "it has room");
        let error = stream.write_all(b"9").await.map_err(|error| error.kind());
        assert_eq!(error, Err(io::ErrorKind::TimedOut));
        drop(theirs);
    }

    #[tokio::test]
    async fn who_takes_what_comes_gets_all_of_it() {
        let (ours, mut theirs) = duplex(8);
        let taking = tokio::spawn(async move {
            let mut taken = Vec::new();
            theirs.read_to_end(&mut taken).await.map(|_| taken)
        });
        let mut stream = Patient::new(ours, Duration::from_mins(1));
        let sent = vec![7; 1000];
        assert!(stream.write_all(&sent).await.is_ok() && stream.shutdown().await.is_ok());
        drop(stream);
        assert_eq!(taking.await.ok().and_then(Result::ok), Some(sent));
    }

    #[tokio::test(start_paused = true)]
    async fn who_still_sends_is_heard_out_and_not_for_ever() {
        for (count, pause, is_heard) in [(3, SILENCE / 2, true), (3, 2 * SILENCE, false), (90, SILENCE / 2, false)] {
            let (ours, mut theirs) = duplex(8);
            let sending = tokio::spawn(async move {
                for _ in 0..count {
                    sleep(pause).await;
                    theirs.write_all(b"what nobody reads").await?;
                }
                let mut taken = Vec::new();
                theirs.read_to_end(&mut taken).await.map(|_| taken)
            });
            let mut stream = Patient::new(ours, Duration::from_mins(1));
            assert!(stream.write_all(b"no").await.is_ok() && stream.shutdown().await.is_ok());
            drop(stream);
            let taken = sending.await.ok().and_then(Result::ok);
            assert_eq!(taken.as_deref() == Some(b"no"), is_heard, "{count} times after {pause:?}");
        }
    }
}
