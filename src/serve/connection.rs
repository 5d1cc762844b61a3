//! Connections with an end: requests that do not come, come too slowly or are not read, and too many at once.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

/// Connections at once; the next ones wait until one of these ends.
const MAX_CONNECTIONS: usize = 512;

/// How long a connection may wait or dawdle.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the head of the first request.
    pub head: Duration,
    /// For the next request, and for what is written to be read.
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { head: Duration::from_secs(15), idle: Duration::from_secs(60) }
    }
}

/// What is known of a connection, for the handlers of its requests.
#[derive(Debug, Clone)]
pub(super) struct Connection(Arc<State>);

#[derive(Debug)]
struct State {
    /// Requests that are being answered.
    n_busy: AtomicUsize,
    /// When the connection ends, if no request is being answered then.
    deadline: Mutex<Instant>,
    idle: Duration,
}

/// As long as this is there, a request is being answered.
pub(super) struct Busy(Connection);

impl Connection {
    pub fn busy(&self) -> Busy {
        self.0.n_busy.fetch_add(1, Ordering::AcqRel);
        Busy(self.clone())
    }

    fn put_off(&self) {
        *self.0.deadline.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + self.0.idle;
    }

    fn deadline(&self) -> Instant {
        *self.0.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.put_off();
        self.0.0.n_busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A listener whose connections end.
pub(super) struct Bounded {
    pub listener: TcpListener,
    pub patience: Patience,
    room: Arc<Semaphore>,
}

impl Bounded {
    pub fn new(listener: TcpListener, patience: Patience) -> Self {
        Self { listener, patience, room: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }
}

impl Listener for Bounded {
    type Io = Timed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Timed, SocketAddr) {
        loop {
            let Ok(permit) = self.room.clone().acquire_owned().await else { continue };
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    let _ = stream.set_nodelay(true);
                    let deadline = Instant::now() + self.patience.head;
                    let state =
                        State { n_busy: AtomicUsize::new(0), deadline: Mutex::new(deadline), idle: self.patience.idle };
                    let connection = Connection(Arc::new(state));
                    return (
                        Timed { stream, connection, timer: Box::pin(sleep_until(deadline)), _permit: permit },
                        address,
                    );
                }
                // Too many open files, say: others must end first.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connected<IncomingStream<'_, Bounded>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        stream.io().connection.clone()
    }
}

/// A stream that fails once its time is up.
pub(super) struct Timed {
    stream: TcpStream,
    connection: Connection,
    timer: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Timed {
    /// Whether the time is up; if not, the task is woken when it may be.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            ready!(self.timer.as_mut().poll(context));
            let (now, deadline) = (Instant::now(), self.connection.deadline());
            if self.connection.0.n_busy.load(Ordering::Acquire) > 0 {
                self.timer.as_mut().reset(now + self.connection.0.idle);
            } else if now < deadline {
                self.timer.as_mut().reset(deadline);
            } else {
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

impl AsyncRead for Timed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_pending() {
            return self.poll_late(context).map(Err);
        }
        read
    }
}

impl AsyncWrite for Timed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        match &written {
            Poll::Pending => return self.poll_late(context).map(Err),
            Poll::Ready(Ok(_)) => self.connection.put_off(),
            Poll::Ready(Err(_)) => (),
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
