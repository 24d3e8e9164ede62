//! Where this machine's apt gets a suite from, so that an image's packages come from the same mirror.

use std::process::Stdio;

use crate::open_files;

/// The lines of a sources.list for the suite, with its updates and security fixes: what apt knows as Debian's own, and
/// nothing of the other repositories that this machine may use.
///
/// None where apt has no lists of the suite: then mmdebstrap's default, Debian's public mirrors, is as good.
pub fn of_machine(suite: &str) -> Option<String> {
    let format = "$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)|$(RELEASE)";
    let output = open_files::command("apt-get")
        .args(["indextargets", "--format", format, "Created-By: Packages"])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    of_suite(&String::from_utf8(output.stdout).ok()?, suite)
}

fn of_suite(targets: &str, suite: &str) -> Option<String> {
    let names = [
        suite.to_owned(),
        format!("{suite}-updates"),
        format!("{suite}-security"),
    ];
    let mut lines = Vec::new();
    let mut has_suite = false;
    for target in targets.lines() {
        let [origin, code_name, component, uri, release] = target.split('|').collect::<Vec<_>>()[..] else {
            continue;
        };
        if origin == "Debian" && component == "main" && names.iter().any(|name| name == code_name) {
            has_suite |= code_name == suite;
            let line = format!("deb {uri} {release} main\n");
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    has_suite.then(|| lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_suites_own_sources_of_debian_are_used() {
        let targets = "Debian|bookworm|main|http://mirror/debian/|bookworm\n\
            Debian|bookworm-security|main|http://mirror/security/|bookworm-security\n\
            Debian|bookworm|contrib|http://mirror/debian/|bookworm\n\
            Debian|bookworm|main|http://mirror/debian/|bookworm\n\
            Debian|trixie|main|http://mirror/debian/|trixie\n\
            Node Source|bookworm|main|http://elsewhere/|bookworm\n\
            broken line\n";
        assert_eq!(
            of_suite(targets, "bookworm").as_deref(),
            Some("deb http://mirror/debian/ bookworm main\ndeb http://mirror/security/ bookworm-security main\n")
        );
        assert_eq!(of_suite(targets, "bullseye"), None);
    }
}
