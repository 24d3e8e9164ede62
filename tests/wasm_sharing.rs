//! Several events at once in one instance of a WASI 0.3 guest, and what becomes of the others when one goes wrong.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{PATIENCE, Response, Served, built};

/// Events that one instance has at once.
const AT_ONCE: usize = 16;

fn start(flags: &[&str]) -> Served {
    Served::start(built("rust-service.wasm"), flags)
}

/// Once the guest has said that it waits for `name`.
async fn waiting(app: &Served, name: &str) {
    let line = format!("&{name}");
    let seen = async {
        while !app.output().contains(&line) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap();
}

/// The most events that each reply says its instance had at once.
fn most(replies: &[Response]) -> Vec<usize> {
    let told = |reply: &Response| {
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.text().trim().parse().unwrap()
    };
    replies.iter().map(told).collect()
}

#[tokio::test]
async fn an_instance_that_waits_has_more_events() {
    let app = start(&[]);
    let replies = join_all((0..3 * AT_ONCE).map(|_| app.get("/meet?1000"))).await;
    let most = most(&replies);
    let highest = *most.iter().max().unwrap();
    assert!((2..=AT_ONCE).contains(&highest), "{most:?}");
    // One event may be alone, if it came while another was being started.
    let shared = most.iter().filter(|&&most| most > 1).count();
    assert!(shared > 2 * AT_ONCE, "{most:?}");
    app.stop();
}

#[tokio::test]
async fn an_instance_that_may_not_has_one_event() {
    for flags in [["--reuse", "1"], ["--fuel", "1000000000"]] {
        let app = start(&flags);
        let replies = join_all((0..10).map(|_| app.get("/meet?300"))).await;
        assert_eq!(most(&replies), [1; 10], "{flags:?}");
        app.stop();
    }
}

#[tokio::test]
async fn an_instance_has_no_more_events_at_once_than_in_its_life() {
    let app = start(&["--reuse", "3"]);
    let replies = join_all((0..12).map(|_| app.get("/meet?500"))).await;
    let most = most(&replies);
    assert!(most.iter().all(|&most| most <= 3), "{most:?}");
    app.stop();
}

#[tokio::test]
async fn a_trap_fails_the_events_of_its_instance_and_no_other() {
    let app = start(&[]);
    let mut failed_together = false;
    // Which instance the trap happens in is chance where one stands ready.
    for round in 0..10 {
        let paths: Vec<String> = (0..4).map(|n| format!("/meet?500&{round}-{n}")).collect();
        let waiters = join_all(paths.iter().map(|path| app.get(path)));
        let trapping = async {
            waiting(&app, &format!("{round}-0")).await;
            join_all((0..3).map(|_| app.get("/panic"))).await
        };
        let (waiters, trapped) = tokio::join!(waiters, trapping);
        for reply in &trapped {
            assert_eq!(reply.status, 500);
            assert!(reply.text().contains("the guest trapped"), "{}", reply.text());
        }
        for reply in &waiters {
            match reply.status {
                200 => {}
                500 => {
                    assert!(reply.text().contains("events at once, which all failed with it"));
                    failed_together = true;
                }
                other => panic!("{other}: {}", reply.text()),
            }
        }
        assert_eq!(app.get("/").await.status, 200);
        if failed_together {
            break;
        }
    }
    assert!(failed_together);
    app.stop();
}

#[tokio::test]
async fn each_event_has_its_own_time() {
    let app = start(&["--timeout", "3"]);
    let late = join_all((0..2).map(|_| app.get("/meet?60000")));
    let in_time = async {
        most(&join_all((0..6).map(|_| app.get("/meet?2000"))).await);
        most(&join_all((0..6).map(|_| app.get("/meet?1500"))).await);
    };
    let (late, ()) = tokio::join!(late, in_time);
    assert!(late.iter().all(|reply| reply.status == 504));
    app.stop();
}

#[tokio::test]
async fn a_loop_without_end_ends_in_time_and_its_instance_with_it() {
    let app = start(&["--timeout", "3"]);
    let waiters = join_all((0..6).map(|_| app.get("/meet?1000&spin")));
    let spinning = async {
        waiting(&app, "spin").await;
        app.get("/spin").await
    };
    let (waiters, spun) = tokio::join!(waiters, spinning);
    assert_eq!(spun.status, 504, "{}", spun.text());
    for reply in waiters {
        assert!(matches!(reply.status, 200 | 504), "{}", reply.text());
    }
    assert_eq!(app.get("/").await.status, 200);
    app.stop();
}

#[tokio::test]
async fn bodies_stay_apart() {
    let app = start(&[]);
    let bodies: Vec<Vec<u8>> = (0..AT_ONCE as u32)
        .map(|of| (0..1_000_000_u32).map(|at| ((at + of) % 251) as u8).collect())
        .collect();
    let waiters = join_all((0..4).map(|_| app.get("/meet?1000")));
    let echoed = join_all(bodies.iter().map(|body| app.post("/echo", body.clone())));
    let (waiters, echoed) = tokio::join!(waiters, echoed);
    most(&waiters);
    for (sent, reply) in bodies.iter().zip(echoed) {
        assert!(reply.body == *sent);
    }
    app.stop();
}

#[tokio::test]
async fn a_client_that_goes_away_takes_nobody_with_it() {
    let app = start(&[]);
    let waiters = join_all((0..6).map(|_| app.get("/meet?2000")));
    let leaving = async {
        for n in 0..6 {
            let mut client = TcpStream::connect(&app.address).await.unwrap();
            let request = format!("GET /meet?60000&leaver{n} HTTP/1.1\r\nhost: test\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            waiting(&app, &format!("leaver{n}")).await;
        }
    };
    let (waiters, ()) = tokio::join!(waiters, leaving);
    most(&waiters);
    app.stop();
}
