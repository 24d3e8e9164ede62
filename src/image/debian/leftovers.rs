//! What a build leaves behind that says something about the build, not about the image: it would differ from one day or
//! machine to the next. Left out when [`super::bootstrap`] reads what mmdebstrap made.

use std::path::Path;

/// Whether the image goes without what is at `path`, unless the recipe has put it there itself. Devices and mount points
/// are left out, too: they are the same for every image, and come with its layers.
pub fn is_leftover(path: &Path) -> bool {
    const BELOW: [&str; 7] = [
        "dev",
        "run",
        "tmp",
        "var/log",
        "var/cache",
        "var/lib/apt",
        "etc/apt/sources.list.d",
    ];
    const FILES: [&str; 8] = [
        "etc/.pwd.lock",
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/apt/sources.list",
        "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
        "etc/hostname",
        "etc/resolv.conf",
        "var/lib/dpkg/available",
        "var/lib/dpkg/lock",
    ];
    // Copies that are made before something is changed.
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_backup = (path.parent() == Some(Path::new("etc")) && name.ends_with('-'))
        || (path.starts_with("var/lib/dpkg") && (name.ends_with("-old") || name == "lock-frontend" || name == "Lock"));
    is_backup
        || FILES.iter().any(|file| path == Path::new(file))
        || BELOW
            .iter()
            .any(|folder| path.starts_with(folder) && path != Path::new(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_build_leaves_behind_is_not_the_images() {
        for path in [
            "var/log/dpkg.log",
            "etc/passwd-",
            "etc/resolv.conf",
            "var/lib/dpkg/status-old",
            "dev/null",
        ] {
            assert!(is_leftover(Path::new(path)), "{path}");
        }
        for path in [
            "var/log",
            "etc/passwd",
            "var/lib/dpkg/status",
            "usr/lib/x-",
            "etc/hosts",
            "device",
        ] {
            assert!(!is_leftover(Path::new(path)), "{path}");
        }
    }
}
