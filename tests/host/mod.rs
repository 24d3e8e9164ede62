//! The host's part of the aleph protocol, byte by byte, as a host speaks it to a VMM's Unix socket.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use polyinit::wire::{Configuration, ConfigurationAnswer, EventAnswer, HttpScope, Scope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::support::{PATIENCE, Running};

/// `polyinit guest`, with a host that has taken its ready signal.
pub struct Guest {
    running: Running,
    folder: tempfile::TempDir,
    /// What the guest sent to say that it is ready.
    pub ready: Vec<u8>,
}

impl Guest {
    pub async fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("v.sock");
        let listener = UnixListener::bind(folder.path().join("v.sock_52")).unwrap();
        let mut all = vec!["guest", "--socket", socket.to_str().unwrap()];
        all.extend(arguments);
        let running = Running::start(&all);
        let ready = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut ready = Vec::new();
            stream.read_to_end(&mut ready).await.unwrap();
            ready
        };
        let ready = tokio::time::timeout(PATIENCE, ready).await.expect("a ready signal");
        Self { running, folder, ready }
    }

    /// Where the guest listens, as a VMM would.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("v.sock")
    }

    /// Waits for a line of its log.
    pub fn wait_for(&self, text: &str) -> String {
        self.running.wait_for(text)
    }

    /// Sees to it that it has ended, and nothing is left.
    pub fn has_ended(self) {
        let (status, output) = self.running.end();
        assert_eq!(status.code(), Some(0), "{output}");
    }

    /// Where the guest API's host listens.
    pub fn api_socket(&self) -> PathBuf {
        self.folder.path().join("v.sock_53")
    }

    /// Writes `wire`, which begins with its CONNECT line, in pieces of `size` bytes, and reads to the end of the answer.
    /// The side of the host stays open, as the real one's does.
    pub async fn exchange_in_pieces(&self, wire: &[u8], size: usize) -> Vec<u8> {
        let (reading, mut writing) = self.connect().await.into_split();
        // A guest that has its answer already need not read on.
        let send = async {
            for piece in wire.chunks(size) {
                if writing.write_all(piece).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            writing
        };
        let (_writing, answer) = tokio::join!(send, read_answer(reading));
        answer
    }

    pub async fn exchange(&self, wire: &[u8]) -> Vec<u8> {
        self.exchange_in_pieces(wire, usize::MAX).await
    }

    /// The same, and then the host closes its side.
    pub async fn exchange_and_close(&self, wire: &[u8]) -> Vec<u8> {
        let (reading, mut writing) = self.connect().await.into_split();
        writing.write_all(wire).await.unwrap();
        writing.shutdown().await.unwrap();
        read_answer(reading).await
    }

    pub async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("v.sock")).await.unwrap()
    }

    pub async fn configure(&self, configuration: &Configuration) -> ConfigurationAnswer {
        let payload = configuration.encode().unwrap();
        let mut wire = format!("CONNECT 52\n{}\n", payload.len()).into_bytes();
        wire.extend(payload);
        ConfigurationAnswer::decode(&self.exchange(&wire).await).unwrap()
    }

    pub async fn event(&self, scope: &Scope) -> EventAnswer {
        let mut wire = b"CONNECT 52\n".to_vec();
        wire.extend(scope.encode().unwrap());
        EventAnswer::decode(&self.exchange(&wire).await).unwrap()
    }

    pub async fn get(&self, path: &str) -> EventAnswer {
        self.event(&http_scope("GET", path, "")).await
    }

    /// Says halt, and waits for what the guest says to that. Returns it, and how long it took.
    pub async fn halt(&self) -> (Vec<u8>, Duration) {
        let began = std::time::Instant::now();
        let said = self.exchange(b"CONNECT 52\nhalt").await;
        (said, began.elapsed())
    }

    /// Halts, and sees to it that nothing is left.
    pub async fn stop(self) -> String {
        let (said, _) = self.halt().await;
        assert_eq!(said, b"STOP\nSTOPZ\n");
        let (status, output) = self.running.end();
        assert_eq!(status.code(), Some(0), "{output}");
        output
    }
}

async fn read_answer(mut reading: tokio::net::unix::OwnedReadHalf) -> Vec<u8> {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, reading.read_to_end(&mut answer)).await;
    read.unwrap_or_else(|_| panic!("the guest does not close the connection; so far: {answer:?}"))
        .unwrap();
    let answer = answer
        .strip_prefix(b"OK 52\n")
        .unwrap_or_else(|| panic!("no OK: {answer:?}"));
    answer.to_vec()
}

pub fn http_scope(method: &str, path: &str, query: &str) -> Scope {
    Scope::Http(HttpScope {
        method: method.into(),
        path: path.into(),
        query_string: query.into(),
        headers: vec![("host".into(), "example.org".into())],
        body: Bytes::new(),
    })
}

/// One of the protocol's test vectors.
pub fn vector(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/vectors")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A configuration for the program at `path`, zipped, as a host makes it.
pub fn configuration_for(path: &std::path::Path, interface: &str, entrypoint: &str) -> Configuration {
    Configuration {
        interface: interface.into(),
        encoding: polyinit::wire::Encoding::Zip,
        entrypoint: entrypoint.into(),
        code: Some(zip_of(path).into()),
        vm_hash: "cad11970efe9b7478300fd04d7cc91c646ca0a792b9cc718650f86e1ccfac73e".into(),
        ..Configuration::default()
    }
}

/// A folder's or a file's content as a zip.
pub fn zip_of(path: &std::path::Path) -> Vec<u8> {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let root = if path.is_dir() { path } else { path.parent().unwrap() };
    for entry in walkdir::WalkDir::new(path).sort_by_file_name() {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            let name = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let mode = entry.metadata().unwrap().permissions().mode();
            zip.start_file(name, zip::write::SimpleFileOptions::default().unix_permissions(mode))
                .unwrap();
            zip.write_all(&std::fs::read(entry.path()).unwrap()).unwrap();
        }
    }
    zip.finish().unwrap().into_inner()
}
