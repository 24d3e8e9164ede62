//! A connection to a host that a guest's request is for: resolved, checked against the rule that names it, made, and
//! secured by TLS where the scheme says so.
//!
//! What is checked is what is connected to: the addresses that the one look-up gave, not the name again.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use wasmtime_wasi_http::Error as HttpError;

use crate::program::sandbox::{HostRule, Scheme};

/// For one address to accept, and for a TLS handshake.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// For a name to be resolved.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(10);
/// Addresses of one name that are tried.
const ADDRESSES: usize = 8;
/// Authorities to trust in place of Mozilla's, as OpenSSL's programs have it.
const CERTIFICATES: &str = "SSL_CERT_FILE";

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Unconnected {
    #[error("{name} can't be resolved: {error}")]
    Unresolved { name: String, error: io::Error },
    #[error("{name} was not resolved within {} s", RESOLVE_DEADLINE.as_secs())]
    ResolveTimeout { name: String },
    #[error(
        "{name} leads to {address}, an address of this machine or its network, which its rule does not lead to; name \
         the address itself in `hosts` to allow it"
    )]
    Inside { name: String, address: IpAddr },
    #[error("{address} refused the connection or can't be reached: {error}")]
    Refused { address: SocketAddr, error: io::Error },
    #[error("{address} did not accept within {} s", CONNECT_DEADLINE.as_secs())]
    Timeout { address: SocketAddr },
    #[error("the TLS handshake with {name} failed: {error}")]
    Tls { name: String, error: io::Error },
    #[error("{0:?} is no name that a certificate could be for")]
    TlsName(String, #[source] InvalidDnsNameError),
    #[error("no authorities to check {name} against: {error}")]
    Authorities { name: String, error: String },
    #[error("there is no guest API here: it is a socket of machines that a host runs{at}")]
    NoGuestApi { at: String },
}

impl Unconnected {
    /// The error code that `wasi:http` has for it.
    pub(super) fn as_http(&self) -> HttpError {
        match self {
            Self::Unresolved { error, .. } => HttpError::DnsError {
                rcode: Some(error.to_string()),
                info_code: None,
            },
            Self::ResolveTimeout { .. } => HttpError::DnsTimeout,
            Self::Inside { .. } => HttpError::DestinationIpProhibited,
            Self::Refused { .. } => HttpError::ConnectionRefused,
            Self::Timeout { .. } => HttpError::ConnectionTimeout,
            Self::Tls { error, .. } if certificate(error) => HttpError::TlsCertificateError,
            Self::Tls { .. } | Self::TlsName(..) => HttpError::TlsProtocolError,
            Self::Authorities { .. } => HttpError::ConfigurationError,
            Self::NoGuestApi { .. } => HttpError::DestinationUnavailable,
        }
    }
}

fn certificate(error: &io::Error) -> bool {
    error
        .get_ref()
        .and_then(|error| error.downcast_ref::<rustls::Error>())
        .is_some_and(|error| matches!(error, rustls::Error::InvalidCertificate(_)))
}

/// Makes connections that the rules allow.
#[derive(Clone)]
pub(super) struct Connector {
    rules: Arc<[HostRule]>,
    guest_api: Option<PathBuf>,
}

impl Connector {
    pub(super) fn new(rules: Arc<[HostRule]>, guest_api: Option<PathBuf>) -> Self {
        Self { rules, guest_api }
    }

    async fn connect(self, uri: Uri) -> Result<Stream, Unconnected> {
        let host = uri.host().unwrap_or_default();
        if host == super::ALEPH && self.rules.contains(&HostRule::Aleph) {
            return guest_api(self.guest_api.as_deref()).await;
        }
        let https = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
        let (scheme, usual) = if https {
            (Scheme::Https, 443)
        } else {
            (Scheme::Http, 80)
        };
        let port = uri.port_u16().unwrap_or(usual);
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let stream = tcp(&self.rules, name, scheme, port).await?;
        if https {
            secure(name, stream).await
        } else {
            Ok(Stream::plain(stream))
        }
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = Unconnected;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, Unconnected>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unconnected>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// The addresses of `name`, one that stands for itself included. `localhost` and what is below it is this machine (RFC
/// 6761, section 6.3) even where no file says so.
pub(in crate::engine::wasm) async fn resolve(name: &str) -> Result<Vec<IpAddr>, Unconnected> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(vec![address]);
    }
    if is_localhost(name) {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let found = tokio::time::timeout(RESOLVE_DEADLINE, tokio::net::lookup_host((name, 0)))
        .await
        .map_err(|_| Unconnected::ResolveTimeout { name: name.to_owned() })?;
    match found {
        Ok(addresses) => Ok(addresses.map(|address| address.ip()).take(ADDRESSES).collect()),
        Err(error) => Err(Unconnected::Unresolved {
            name: name.to_owned(),
            error,
        }),
    }
}

fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or_default();
    last.eq_ignore_ascii_case("localhost")
}

async fn tcp(rules: &[HostRule], name: &str, scheme: Scheme, port: u16) -> Result<TcpStream, Unconnected> {
    let mut last = Unconnected::Unresolved {
        name: name.to_owned(),
        error: io::Error::other("it has no address"),
    };
    for address in resolve(name).await? {
        if !rules
            .iter()
            .any(|rule| rule.permits(scheme, port) && rule.leads_from(name, address))
        {
            last = Unconnected::Inside {
                name: name.to_owned(),
                address,
            };
            continue;
        }
        let address = SocketAddr::new(address, port);
        match tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Heads and short bodies are written at once.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => last = Unconnected::Refused { address, error },
            Err(_) => last = Unconnected::Timeout { address },
        }
    }
    Err(last)
}

async fn secure(name: &str, stream: TcpStream) -> Result<Stream, Unconnected> {
    let config = match &*TLS {
        Ok(config) => config.clone(),
        Err(error) => {
            return Err(Unconnected::Authorities {
                name: name.to_owned(),
                error: error.clone(),
            });
        }
    };
    let server = ServerName::try_from(name.to_owned()).map_err(|error| Unconnected::TlsName(name.to_owned(), error))?;
    let broken = |error| Unconnected::Tls {
        name: name.to_owned(),
        error,
    };
    let stream = tokio::time::timeout(CONNECT_DEADLINE, TlsConnector::from(config).connect(server, stream))
        .await
        .map_err(|_| broken(io::ErrorKind::TimedOut.into()))?
        .map_err(broken)?;
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Stream {
        io: TokioIo::new(Box::new(stream)),
        h2,
    })
}

async fn guest_api(socket: Option<&Path>) -> Result<Stream, Unconnected> {
    let none = |at: String| Unconnected::NoGuestApi { at };
    let socket = socket.ok_or_else(|| none(String::new()))?;
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| none(format!(" ({}: {error})", socket.display())))?;
    Ok(Stream::plain(stream))
}

/// What TLS is spoken with, made for the first connection that needs it.
static TLS: LazyLock<Result<Arc<ClientConfig>, String>> = LazyLock::new(|| {
    let authorities = match std::env::var_os(CERTIFICATES) {
        None => RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        },
        Some(file) => read_authorities(Path::new(&file))?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(authorities)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
});

fn read_authorities(file: &Path) -> Result<RootCertStore, String> {
    let wrong = |error: String| format!("{CERTIFICATES} is {}: {error}", file.display());
    let mut authorities = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))? {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        authorities.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if authorities.is_empty() {
        return Err(wrong("there is no certificate in it".into()));
    }
    Ok(authorities)
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection of any kind.
pub(super) struct Stream {
    io: TokioIo<Box<dyn Io>>,
    /// Whether TLS has agreed on HTTP/2.
    h2: bool,
}

impl Stream {
    fn plain(stream: impl Io + 'static) -> Self {
        Self {
            io: TokioIo::new(Box::new(stream)),
            h2: false,
        }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.h2 { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<HostRule> {
        vec![text.parse().unwrap()]
    }

    #[tokio::test]
    async fn a_name_for_many_hosts_does_not_lead_into_this_machine() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let refused = tcp(&rules("*:*"), "localhost", Scheme::Http, port).await.unwrap_err();
        assert!(
            matches!(refused.as_http(), HttpError::DestinationIpProhibited),
            "{refused}"
        );
        assert!(refused.to_string().contains("name the address itself in `hosts`"));
        let both: Vec<HostRule> = ["*:*", "127.0.0.1:*"].map(|rule| rule.parse().unwrap()).into();
        assert!(tcp(&both, "localhost", Scheme::Http, port).await.is_ok());
        for (rule, name) in [
            ("localhost:*", "localhost"),
            ("localhost:*", "LocalHost."),
            ("shop.localhost:*", "shop.localhost"),
            ("127.0.0.1:*", "127.0.0.1"),
        ] {
            assert!(tcp(&rules(rule), name, Scheme::Http, port).await.is_ok(), "{name}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_told_so() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let refused = tcp(&rules("127.0.0.1:*"), "127.0.0.1", Scheme::Http, free.port())
            .await
            .unwrap_err();
        assert!(matches!(refused.as_http(), HttpError::ConnectionRefused), "{refused}");
        let missing = guest_api(None).await.err().unwrap();
        assert!(missing.to_string().starts_with("there is no guest API here"));
    }
}
