//! Connections: accepted within limits, closed when their clients are slow, drained at the end.

use std::{io, sync::Arc, time::Duration};

use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;

use super::app::App;

/// Bytes of the head of a request.
const HEAD: usize = 64 << 10;
/// Pause when the system has no descriptors left.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// Serves `app` on `listener` until `stop` is ready; then no more is accepted, and what runs is
/// finished within the time that a request may take.
pub(super) async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send,
) {
    let limits = app.limits.clone();
    let router = app.clone().router();
    let slots = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    let connections = GracefulShutdown::new();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.client_time).max_buf_size(HEAD);
    tokio::pin!(stop);
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
            let (stream, _) = listener.accept().await?;
            Ok::<_, io::Error>((slot, stream))
        };
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = next => accepted,
        };
        let (slot, stream) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_the_client(&error) => continue,
            Err(error) => {
                tracing::warn!("a connection cannot be accepted: {error}");
                sleep(EXHAUSTED).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let stream = TokioIo::new(Box::pin(timed(stream, limits.client_time)));
        let connection = connections.watch(builder.serve_connection(stream, service));
        let open = Open::new(app.clone());
        tokio::spawn(async move {
            let _held = (slot, open);
            if let Err(error) = connection.await {
                tracing::debug!("a connection ended: {error}");
            }
        });
    }
    drop(listener);
    if timeout(limits.time, connections.shutdown()).await.is_err() {
        tracing::warn!("requests that still run are given up");
    }
}

/// Ends the connection when its client takes in nothing for a while.
fn timed(stream: TcpStream, time: Duration) -> TimeoutStream<TcpStream> {
    // Only costs time if refused.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(time));
    stream
}

fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Counts an open connection.
struct Open(Arc<App>);

impl Open {
    fn new(app: Arc<App>) -> Self {
        app.metrics.connections.inc();
        Self(app)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.metrics.connections.dec();
    }
}
