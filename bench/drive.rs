//! Plays the host for one guest on this machine and measures it: `bench/run` starts it once for each guest and program.
//!
//! ```text
//! drive --socket V [--config FILE] [--interface asgi|executable] [--entrypoint E] --code FILE|FOLDER [--path /]
//!       [--seconds 3] -- COMMAND...
//! ```
//!
//! COMMAND is a guest that listens on the Unix socket V as a VMM does. Prints one line of JSON.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use polyinit::wire::{Configuration, ConfigurationAnswer, Encoding, EventAnswer, HttpScope, Scope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(clap::Parser)]
struct Arguments {
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    code: PathBuf,
    #[arg(long, default_value = "asgi")]
    interface: String,
    #[arg(long, default_value = "app")]
    entrypoint: String,
    #[arg(long, default_value = "/")]
    path: String,
    /// For each number of events at once.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let arguments = <Arguments as clap::Parser>::parse();
    let configuration = configuration(&arguments)?;
    let mut ready_socket = arguments.socket.clone().into_os_string();
    ready_socket.push("_52");
    let listener = UnixListener::bind(&ready_socket)?;

    let began = Instant::now();
    let mut guest = Command::new(&arguments.command[0])
        .args(&arguments.command[1..])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let (mut stream, _) = tokio::time::timeout(Duration::from_secs(60), listener.accept()).await??;
    let ready = began.elapsed();
    let resident_ready = resident(guest.id());
    stream.read_to_end(&mut Vec::new()).await?;
    // A host fetches code and prepares volumes meanwhile; a guest may use that time, too.
    tokio::time::sleep(Duration::from_millis(500)).await;

    let began = Instant::now();
    let answer = configure(&arguments.socket, &configuration).await?;
    let configured = began.elapsed();
    if let ConfigurationAnswer::Failure { error, traceback } = answer {
        return Err(format!("{error}\n{traceback}").into());
    }
    let mut event = b"CONNECT 52\n".to_vec();
    event.extend(
        Scope::Http(HttpScope {
            path: arguments.path.clone(),
            method: "GET".into(),
            headers: vec![
                ("host".into(), "example.org".into()),
                ("user-agent".into(), "drive".into()),
            ],
            ..HttpScope::default()
        })
        .encode()?,
    );
    let event = Arc::new(event);
    let began = Instant::now();
    one(&arguments.socket, &event).await?;
    let first = began.elapsed();
    let began = Instant::now();
    for _ in 0..1000 {
        one(&arguments.socket, &event).await?;
    }
    let thousand = began.elapsed();
    let mut rates = Vec::new();
    for at_once in [1, 8, 64] {
        let seconds = Duration::from_secs_f64(arguments.seconds);
        let before = processor_time(guest.id());
        let (mut rate, events) = rate(&arguments.socket, &event, at_once, seconds).await?;
        let spent = processor_time(guest.id()).saturating_sub(before);
        rate["processor_us"] = (spent.as_micros() as f64 / events as f64).round().into();
        rates.push(rate);
    }
    let resident_after = resident(guest.id());
    let began = Instant::now();
    let said = exchange(&arguments.socket, b"CONNECT 52\nhalt").await?;
    let halted = began.elapsed();
    if !said.ends_with(b"STOP\n") && !said.ends_with(b"STOPZ\n") {
        return Err("the guest did not say STOP".into());
    }
    let _ = guest.kill();
    guest.wait()?;
    let milliseconds = |time: Duration| (time.as_secs_f64() * 1e5).round() / 100.0;
    println!(
        "{}",
        serde_json::json!({
            "ready_ms": milliseconds(ready),
            "configured_ms": milliseconds(configured),
            "first_ms": milliseconds(first),
            "thousand_ms": milliseconds(thousand),
            "rates": rates,
            "resident_ready_kib": resident_ready,
            "resident_after_kib": resident_after,
            "halt_ms": milliseconds(halted),
        })
    );
    Ok(())
}

fn configuration(arguments: &Arguments) -> Result<Vec<u8>, Error> {
    let (encoding, code) = if arguments.code.is_dir() {
        (Encoding::Zip, zip_of(&arguments.code)?)
    } else {
        (Encoding::Plain, std::fs::read(&arguments.code)?)
    };
    let payload = Configuration {
        interface: arguments.interface.clone(),
        encoding,
        entrypoint: arguments.entrypoint.clone(),
        code: Some(code.into()),
        vm_hash: "cad11970efe9b7478300fd04d7cc91c646ca0a792b9cc718650f86e1ccfac73e".into(),
        ..Configuration::default()
    }
    .encode()?;
    let mut wire = format!("CONNECT 52\n{}\n", payload.len()).into_bytes();
    wire.extend(payload);
    Ok(wire)
}

fn zip_of(folder: &std::path::Path) -> Result<Vec<u8>, Error> {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for entry in walkdir::WalkDir::new(folder).sort_by_file_name() {
        let entry = entry?;
        if entry.file_type().is_file() {
            let mode = entry.metadata()?.permissions().mode();
            let name = entry.path().strip_prefix(folder)?.to_string_lossy().into_owned();
            zip.start_file(name, zip::write::SimpleFileOptions::default().unix_permissions(mode))?;
            zip.write_all(&std::fs::read(entry.path())?)?;
        }
    }
    Ok(zip.finish()?.into_inner())
}

/// Configures the guest. Not every guest closes this connection: the answer ends where it is one.
async fn configure(socket: &std::path::Path, wire: &[u8]) -> Result<ConfigurationAnswer, Error> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(wire).await?;
    let mut said = Vec::new();
    loop {
        if stream.read_buf(&mut said).await? == 0 {
            return Err("the guest closed the connection without an answer".into());
        }
        let line = said.iter().position(|byte| *byte == b'\n');
        if let Some(answer) = line.and_then(|line| ConfigurationAnswer::decode(&said[line + 1..]).ok()) {
            return Ok(answer);
        }
    }
}

/// Events in a second, so many at once, the median and 99th percentile of their times in microseconds; and how many
/// there were.
async fn rate(
    socket: &std::path::Path,
    event: &Arc<Vec<u8>>,
    at_once: usize,
    time: Duration,
) -> Result<(serde_json::Value, usize), Error> {
    let stop = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let clients: Vec<_> = (0..at_once)
        .map(|_| {
            let (socket, event, stop) = (socket.to_owned(), event.clone(), stop.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    one(&socket, &event).await?;
                    times.push(began.elapsed().as_micros() as u64);
                }
                Ok::<_, Error>(times)
            })
        })
        .collect();
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await??);
    }
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let measured =
        serde_json::json!({"at_once": at_once, "per_second": rate.round(), "p50_us": at(0.5), "p99_us": at(0.99)});
    Ok((measured, times.len()))
}

async fn one(socket: &std::path::Path, event: &[u8]) -> Result<(), Error> {
    let answer = exchange(socket, event).await?;
    match EventAnswer::decode(&answer)? {
        EventAnswer::Http(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("not the answer that is measured: {other:?}").into()),
    }
}

async fn exchange(socket: &std::path::Path, wire: &[u8]) -> Result<Vec<u8>, Error> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(wire).await?;
    let mut answer = Vec::with_capacity(4096);
    stream.read_to_end(&mut answer).await?;
    // "OK <port>\n" comes first.
    let line = answer.iter().position(|byte| *byte == b'\n').ok_or("no OK line")?;
    Ok(answer.split_off(line + 1))
}

/// Resident memory of a process, in KiB (proc_pid_status(5)).
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or_default()
}

/// What a process, its threads and its descendants have had of processors (proc(5), `schedstat` and `children`).
fn processor_time(process: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let of_task = |task: std::fs::DirEntry| {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let own = read("schedstat").split(' ').next().and_then(|nanos| nanos.parse().ok());
        let children = read("children");
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        Duration::from_nanos(own.unwrap_or_default()) + children.map(processor_time).sum::<Duration>()
    };
    tasks.map(of_task).sum()
}
