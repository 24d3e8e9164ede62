//! The README's commands do what it says.

use std::path::Path;

use crate::support::{Running, get};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn readme() -> String {
    std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap()
}

/// The lines that a reader types.
fn commands(readme: &str) -> Vec<Vec<&str>> {
    let lines = readme.lines().filter_map(|line| line.strip_prefix("$ "));
    lines
        .map(|line| line.split(" #").next().unwrap().split_whitespace().collect())
        .collect()
}

#[tokio::test]
async fn every_command_works() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::os::unix::fs::symlink(Path::new(ROOT).join("runtimes"), at("runtimes")).unwrap();
    let makefile = std::fs::read_to_string(Path::new(ROOT).join("Makefile")).unwrap();
    let readme = readme();
    for command in commands(&readme) {
        match &command[..] {
            // This is one of them, and the other runs after it.
            ["make", target] => assert!(makefile.contains(&format!("\n{target}:")), "{command:?}"),
            // `make images` has run it, with a place for its packages.
            ["polyinit", "image", "build", recipe @ "runtimes/debian-12", ..] => {
                assert!(makefile.contains(&format!("image build {recipe} -o")));
                let image = Path::new(ROOT).join("target/images/debian-12.squashfs");
                std::os::unix::fs::symlink(image, at("debian-12.squashfs")).unwrap();
            }
            ["polyinit", rest @ ..] => {
                // What `polyinit new` makes, what is there, and what has an extension is in the folder.
                let is_path = |word: &str| word == "hello" || word.contains('.') || folder.path().join(word).exists();
                let words: Vec<String> = rest
                    .iter()
                    .map(|word| if is_path(word) { at(word) } else { (*word).to_owned() })
                    .collect();
                run(&words.iter().map(String::as_str).collect::<Vec<_>>()).await;
            }
            _ => panic!("no test runs {command:?}"),
        }
    }
}

/// Runs one to its end, or to its being asked once and told to end.
async fn run(words: &[&str]) {
    let serves = ["serve", "vm"].contains(&words[0]);
    let mut words = words.to_vec();
    if serves {
        words.extend(["--listen", "127.0.0.1:0"]);
    }
    let running = Running::start(&words);
    if serves {
        let line = running.wait_for("serving on http://");
        let address = line.rsplit('/').next().unwrap().trim().to_owned();
        assert!(get(&address, "/").await.text().contains("hello"), "{words:?}");
        running.interrupt();
    }
    let (status, output) = running.end();
    assert_eq!(status.code(), Some(0), "{words:?}: {output}");
}
