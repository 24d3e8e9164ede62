//! Schedules: requests that the machine itself makes, at the times that a manifest says. Between the clock and the router.
//!
//! ```text
//! clock -> cron expression -> Event (POST http://NAME.internal/path) -> router
//! ```
//!
//! A run is not begun before the last one of the same schedule has ended. Runs whose time came meanwhile, or while the
//! machine stood still, are missed: the next run is told how many, and so is the log.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use croner::Cron;
use http::header::{HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, Uri};
use tokio::task::JoinSet;

use crate::event::{Body, Event, Failure, FailureKind, Reply};
use crate::intake::Handler;
use crate::program::Component;
use crate::program::manifest::ScheduleKeys;
use crate::router::INTERNAL;

/// The clock is looked at this often: it may be set, and the machine may stand still.
const LOOK: Duration = Duration::from_secs(20);

/// The largest part of a reply that is waited for, in bytes; nobody reads it.
const REPLY_LIMIT: usize = 16 << 20;

/// Missed runs that are counted at most.
const COUNTED: usize = 1000;

/// When a component is asked what.
#[derive(Debug, Clone)]
pub struct Schedule {
    component: String,
    /// As the manifest says it.
    text: String,
    cron: Cron,
    method: Method,
    path: String,
}

impl Schedule {
    /// The schedule of `component` that a manifest says.
    ///
    /// # Errors
    /// The key that is wrong, and a sentence for the one who wrote it.
    pub fn new(component: &str, keys: &ScheduleKeys) -> Result<Self, (&'static str, String)> {
        let cron = Cron::from_str(&keys.cron).map_err(|error| {
            let why = error.to_string();
            let why = why.trim_start_matches("Component error: ").trim_end_matches('.');
            let message = format!("{:?} is no cron expression: {why}", keys.cron);
            (
                "cron",
                format!("{message}; it is minute, hour, day, month, weekday, as \"*/5 * * * *\""),
            )
        })?;
        if cron.find_next_occurrence(&DateTime::UNIX_EPOCH, false).is_err() {
            return Err(("cron", format!("{:?} is a time that never comes", keys.cron)));
        }
        let method = keys.method.as_deref().unwrap_or("POST");
        let method =
            Method::from_bytes(method.as_bytes()).map_err(|_| ("method", format!("{method:?} is no HTTP method")))?;
        let upper = method.as_str().to_ascii_uppercase();
        if upper != method.as_str() {
            return Err((
                "method",
                format!("\"{method}\" is not how a method is written: {upper:?}"),
            ));
        }
        let path = keys.path.as_deref().unwrap_or("/");
        let schedule = Self {
            component: component.to_owned(),
            text: keys.cron.clone(),
            cron,
            method,
            path: path.to_owned(),
        };
        if !path.starts_with('/') || schedule.target().is_err() {
            return Err((
                "path",
                format!("{path:?} is no path: it begins with a slash, and has no spaces"),
            ));
        }
        Ok(schedule)
    }

    fn target(&self) -> Result<Uri, http::uri::InvalidUri> {
        format!("http://{}{INTERNAL}{}", self.component, self.path).parse()
    }

    /// The first time after `time` that it runs; `None` if it never does.
    fn next(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.cron.find_next_occurrence(&time, false).ok()
    }

    /// How many of its times are after `ran` and no later than `now`.
    fn missed(&self, ran: DateTime<Utc>, now: DateTime<Utc>) -> usize {
        let mut count = 0;
        let mut time = ran;
        while count < COUNTED
            && let Some(next) = self.next(time)
            && next <= now
        {
            (count, time) = (count + 1, next);
        }
        count
    }

    fn event(&self, time: DateTime<Utc>, missed: usize) -> Option<Event> {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target().ok()?;
        let headers = request.headers_mut();
        headers.insert(
            HOST,
            HeaderValue::try_from(format!("{}{INTERNAL}", self.component)).ok()?,
        );
        headers.insert(USER_AGENT, HeaderValue::from_static("polyinit"));
        headers.insert("polyinit-schedule", HeaderValue::try_from(self.text.as_str()).ok()?);
        let time = time.to_rfc3339_opts(SecondsFormat::Secs, true);
        headers.insert("polyinit-scheduled", HeaderValue::try_from(time).ok()?);
        headers.insert("polyinit-missed", missed.into());
        Some(Event::http(request))
    }

    async fn keep(self, handler: Handler) {
        let mut ran = now();
        loop {
            let Some(next) = self.next(ran) else {
                tracing::warn!(
                    component = self.component,
                    "the schedule {:?} has no time left",
                    self.text
                );
                return;
            };
            sleep_until(next).await;
            // Its own time, and those that came while nobody could look at the clock.
            let missed = self.missed(ran, now()).saturating_sub(1);
            if missed > 0 {
                let runs = if missed == 1 { "run" } else { "runs" };
                tracing::warn!(
                    component = self.component,
                    "the schedule {:?} missed {missed} {runs}: the one before took that long, or the machine stood still",
                    self.text
                );
            }
            ran = now().max(next);
            let Some(event) = self.event(next, missed) else {
                tracing::error!(
                    component = self.component,
                    "the schedule {:?} makes no request",
                    self.text
                );
                return;
            };
            match run(handler(event).await).await {
                Ok(()) => {}
                Err(failure) => failure.log(&self.component, format_args!("the schedule {:?}", self.text)),
            }
        }
    }
}

/// What came of a run, once its reply is through.
async fn run(reply: Result<Reply, Failure>) -> Result<(), Failure> {
    match reply {
        Ok(Reply::Http(response)) => {
            let status = response.status();
            response.into_body().collect(REPLY_LIMIT).await?;
            if status.is_client_error() || status.is_server_error() {
                let message = format!("it was answered with {status}");
                return Err(Failure::new(FailureKind::Program, message));
            }
            Ok(())
        }
        Ok(Reply::Value(_)) => Ok(()),
        Err(failure) => Err(failure),
    }
}

async fn sleep_until(time: DateTime<Utc>) {
    loop {
        let Ok(left) = (time - now()).to_std() else { return };
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

fn now() -> DateTime<Utc> {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    DateTime::from_timestamp(seconds, since.subsec_nanos()).unwrap_or_default()
}

/// Keeps the schedules of these components, until what is returned is dropped. `handler` gives a request to the component
/// that it names.
pub fn keep<'a>(components: impl Iterator<Item = &'a Component>, handler: &Handler) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for component in components {
        for keys in &component.keys.schedules {
            // What can't be one was told when the manifest was read.
            if let Ok(schedule) = Schedule::new(&component.name, keys) {
                tasks.spawn(schedule.keep(handler.clone()));
            }
        }
    }
    tasks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(cron: &str) -> Schedule {
        let keys = ScheduleKeys {
            cron: cron.to_owned(),
            path: Some("/tidy?all".to_owned()),
            method: None,
        };
        Schedule::new("app", &keys).unwrap()
    }

    fn at(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    #[test]
    fn knows_its_next_time_and_those_that_it_missed() {
        let every = schedule("*/15 * * * *");
        assert_eq!(every.next(at("2026-01-01T00:01:00Z")), Some(at("2026-01-01T00:15:00Z")));
        assert_eq!(every.next(at("2026-01-01T00:15:00Z")), Some(at("2026-01-01T00:30:00Z")));
        assert_eq!(every.missed(at("2026-01-01T00:15:00Z"), at("2026-01-01T01:00:10Z")), 3);
        assert_eq!(every.missed(at("2026-01-01T00:15:00Z"), at("2026-01-01T00:29:59Z")), 0);
        assert_eq!(
            every.missed(at("2020-01-01T00:15:00Z"), at("2026-01-01T00:00:00Z")),
            COUNTED
        );
    }

    #[test]
    fn its_request_names_the_component_and_the_time() {
        let event = schedule("0 4 * * 1").event(at("2026-01-05T04:00:00Z"), 2).unwrap();
        let crate::event::Input::Http(request) = event.input else {
            panic!("no request")
        };
        assert_eq!(request.uri(), "http://app.internal/tidy?all");
        assert_eq!(request.method(), Method::POST);
        let header = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("polyinit-schedule"), "0 4 * * 1");
        assert_eq!(header("polyinit-scheduled"), "2026-01-05T04:00:00Z");
        assert_eq!(header("polyinit-missed"), "2");
    }

    #[test]
    fn mistakes_say_what_to_write() {
        let wrong = |cron: &str, path: &str, method: Option<&str>| {
            let keys = ScheduleKeys {
                cron: cron.to_owned(),
                path: Some(path.to_owned()),
                method: method.map(str::to_owned),
            };
            Schedule::new("app", &keys).unwrap_err().0
        };
        assert_eq!(wrong("every day", "/", None), "cron");
        assert_eq!(wrong("61 * * * *", "/", None), "cron");
        assert_eq!(wrong("0 0 30 2 *", "/", None), "cron");
        assert_eq!(wrong("* * * * *", "tidy", None), "path");
        assert_eq!(wrong("* * * * *", "/a b", None), "path");
        assert_eq!(wrong("* * * * *", "/", Some("P T")), "method");
    }
}
