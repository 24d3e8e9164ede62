//! What `--help` says, as a person sees it. `INSTA_UPDATE=always cargo test help` writes tests/snapshots anew, for review.

use std::process::Command;

/// The help of the command that `words` lead to.
fn help(words: &[String]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_polyinit"))
        .args(words)
        .arg("--help")
        .output()
        .unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    assert!(output.stderr.is_empty(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that a help text names, but for `help` itself.
fn commands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    lines
        .take_while(|line| !line.is_empty())
        // Deeper is what goes on from the line before.
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_command_says_what_it_does_with_examples() {
    let mut open = vec![vec!["polyinit".to_owned()]];
    let mut seen = 0;
    while let Some(words) = open.pop() {
        let text = help(&words[1..]);
        assert!(text.contains("\nExample"), "{words:?}: {text}");
        insta::assert_snapshot!(words.join("-"), text);
        open.extend(commands(&text).into_iter().map(|name| [&words[..], &[name]].concat()));
        seen += 1;
    }
    assert!(seen > 10, "of {seen} commands only");
}
