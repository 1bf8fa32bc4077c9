//! The two servers: the API on TCP, the API and the admin's routes on the Unix socket.
//!
//! They are apart so that an admin gets in when every connection of the other is taken.

use crate::admin::{FrontAdmin, admin};
use crate::app::App;
use crate::backend::Backend;
use crate::limits::HttpLimits;
use crate::routes::{api, nothing_here};
use crate::watch::watch;
use actix_web::dev::ServerHandle;
use actix_web::middleware::from_fn;
use actix_web::web::{self, Data};
use actix_web::{App as ActixApp, HttpServer};
use mlxd_dispatch::Dispatch;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Admins that may be connected at once.
const ADMIN_CONNECTIONS_MAX: usize = 64;

/// How long a connection may take to say goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// Two running servers. Dropping it leaves them running; [`Running::stop`] ends them.
#[derive(Debug)]
pub struct Running {
    handles: [ServerHandle; 2],
    tasks: [JoinHandle<io::Result<()>>; 2],
}

/// Serves `dispatch` on two listeners. Must be called on a tokio runtime. Returns at once;
/// connections are accepted from then on.
///
/// `shutdown` is cancelled when an admin asks for it: stopping is the caller's.
///
/// # Errors
/// When a listener cannot be used.
pub fn bind(
    limits: HttpLimits,
    dispatch: Dispatch,
    tcp: TcpListener,
    unix: UnixListener,
    shutdown: CancellationToken,
    front: Arc<dyn FrontAdmin>,
) -> io::Result<Running> {
    bind_to(limits, dispatch, tcp, unix, shutdown, front)
}

pub(crate) fn bind_to<B: Backend>(
    limits: HttpLimits,
    backend: B,
    tcp: TcpListener,
    unix: UnixListener,
    shutdown: CancellationToken,
    front: Arc<dyn FrontAdmin>,
) -> io::Result<Running> {
    let base_url = format!("http://{}/v1", tcp.local_addr()?);
    let app = Data::new(App::new(limits.clone(), backend, base_url, shutdown, front));

    let shared = app.clone();
    let public = HttpServer::new(move || {
        ActixApp::new()
            .app_data(shared.clone())
            .configure(api::<B>)
            .default_service(web::to(nothing_here))
            .wrap(from_fn(watch::<B>))
    })
    .workers(limits.threads)
    .max_connections(limits.connections_max.div_ceil(limits.threads))
    .worker_max_blocking_threads(limits.blocking_threads_max)
    .keep_alive(limits.keep_alive)
    .client_request_timeout(limits.header_timeout)
    .client_disconnect_timeout(GOODBYE_TIMEOUT)
    // A client that closes its side is gone: its handler is dropped, and with it what is being
    // generated. Nothing but the end of the stream tells of a client that waits in silence.
    .h1_allow_half_closed(false)
    .tcp_nodelay(true)
    .shutdown_timeout(limits.shutdown_grace.as_secs())
    .disable_signals()
    .listen(tcp)?
    .run();

    let shared = app;
    let private = HttpServer::new(move || {
        ActixApp::new()
            .app_data(shared.clone())
            .configure(api::<B>)
            .configure(admin::<B>)
            .default_service(web::to(nothing_here))
            .wrap(from_fn(watch::<B>))
    })
    .workers(1)
    .max_connections(ADMIN_CONNECTIONS_MAX)
    .worker_max_blocking_threads(2)
    .keep_alive(limits.keep_alive)
    .client_request_timeout(limits.header_timeout)
    .client_disconnect_timeout(GOODBYE_TIMEOUT)
    .h1_allow_half_closed(false)
    .shutdown_timeout(limits.shutdown_grace.as_secs())
    .disable_signals()
    .listen_uds(unix)?
    .run();

    let handles = [public.handle(), private.handle()];
    let tasks = [tokio::spawn(public), tokio::spawn(private)];
    Ok(Running { handles, tasks })
}

impl Running {
    /// Stops listening and ends the servers. With `graceful`, running answers may go on for
    /// [`HttpLimits::shutdown_grace`]; without, they are cut.
    ///
    /// # Errors
    /// What a server's task ended with.
    pub async fn stop(self, graceful: bool) -> io::Result<()> {
        let [public, private] = &self.handles;
        tokio::join!(public.stop(graceful), private.stop(graceful));
        for task in self.tasks {
            task.await.map_err(io::Error::other)??;
        }
        Ok(())
    }
}
