//! A server over a model and the features of pictures: embeds, searches and classifies, with a page
//! for people (`assets/serve/index.html`) and a description for programs
//! (`assets/serve/openapi.json`).
//!
//! Concurrent requests are computed together: `batcher` is the one queue in front of the one thread
//! that owns the model. Whatever a client sends is bounded by [`Limits`] before memory or time is
//! spent on it.

mod api;
mod app;
mod batcher;
mod connection;
mod encoder;
mod error;
#[cfg(feature = "hnsw")]
mod hnsw;
mod index;
mod limits;
mod metrics;
mod payload;
mod pictures;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

pub use app::{App, Served};
pub use error::ServeError;
pub use index::{Index, IndexKind};
pub use limits::{Batching, Limits};
pub use pictures::Pictures;

/// Serves `app` on `address` until SIGINT or SIGTERM (Ctrl-C on other systems), then finishes what
/// runs; a second signal ends it at once. `ready` is told the address once connections are accepted,
/// which matters for port 0.
///
/// # Errors
/// [`ServeError::Listen`] if the address is taken or not of this machine; what `ready` returns.
pub fn run<E: From<ServeError>>(
    app: App,
    address: SocketAddr,
    ready: impl FnOnce(SocketAddr) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |error: io::Error| E::from(ServeError::System(error));
    let listen = |source| E::from(ServeError::Listen { address, source });
    let listener = TcpListener::bind(address).map_err(listen)?;
    listener.set_nonblocking(true).map_err(listen)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    let result = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(listen)?;
        let stop = signals().map_err(failed)?;
        ready(listener.local_addr().map_err(failed)?)?;
        let server = tokio::spawn(connection::serve(Arc::new(app), listener, stop));
        server.await.map_err(|error| failed(io::Error::other(error)))
    });
    // Not waiting for pictures still being decoded for requests that were given up.
    runtime.shutdown_background();
    result
}

/// Ready when the process is asked to end; the next time it is, it ends.
#[cfg(unix)]
fn signals() -> io::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{Signal, SignalKind, signal};

    async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
        tokio::select! {
            _ = interrupt.recv() => {},
            _ = terminate.recv() => {},
        }
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        either(&mut interrupt, &mut terminate).await;
        tokio::spawn(async move {
            either(&mut interrupt, &mut terminate).await;
            std::process::exit(130);
        });
    })
}

#[cfg(not(unix))]
fn signals() -> io::Result<impl Future<Output = ()> + Send> {
    async fn asked() {
        // Where the handler cannot be set the system's own ends the process.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
    Ok(async {
        asked().await;
        tokio::spawn(async {
            asked().await;
            std::process::exit(130);
        });
    })
}
