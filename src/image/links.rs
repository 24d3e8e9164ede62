//! Where a path of an image really leads, for [`super::tree`] before the image is written and [`super::inspect`] after.

use std::path::{Component, Path, PathBuf};

/// As many symbolic links as Linux follows on the way to one file (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Follows every link on the way to `path`, its last part too. `target` says where a path leads, if it is a link. The
/// answer is relative to the image's root, which nothing leads out of: `/..` is `/`.
///
/// None: too many links.
pub fn follow(path: &Path, target: impl Fn(&Path) -> Option<PathBuf>) -> Option<PathBuf> {
    let mut real = PathBuf::new();
    let mut links = 0;
    let mut todo = parts_in_reverse(path);
    while let Some(part) = todo.pop() {
        match part.components().next() {
            Some(Component::RootDir) => real = PathBuf::new(),
            Some(Component::ParentDir) => drop(real.pop()),
            Some(Component::Normal(name)) => {
                let next = real.join(name);
                match target(&next) {
                    Some(_) if links == MAX_LINKS => return None,
                    Some(target) => {
                        links += 1;
                        todo.extend(parts_in_reverse(&target));
                    }
                    None => real = next,
                }
            }
            _ => {}
        }
    }
    Some(real)
}

fn parts_in_reverse(path: &Path) -> Vec<PathBuf> {
    path.components()
        .rev()
        .map(|part| PathBuf::from(part.as_os_str()))
        .collect()
}
