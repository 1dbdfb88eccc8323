//! Which program this is: the path that it was started by, where a newer one may lie by now.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

static PATH: OnceLock<PathBuf> = OnceLock::new();

/// Finds it out. Called at the start, before anybody can have replaced the file: the kernel tells the path of a replaced one
/// with `(deleted)` behind it.
pub fn remember() {
    path();
}

/// The path that this program was started by.
pub fn path() -> PathBuf {
    PATH.get_or_init(|| {
        let exe = env::current_exe().unwrap_or_default();
        let argv0 = env::args_os().next().unwrap_or_default();
        let here = env::current_dir().unwrap_or_default();
        let same = |p: &Path| p.canonicalize().is_ok_and(|real| real == exe);
        resolve(Path::new(&argv0), &here, env::var_os("PATH").as_deref(), same).unwrap_or(exe)
    })
    .clone()
}

/// What a shell would have started by the name `argv0`, if it is the `same` program: a symbolic link that points to it
/// counts, for an upgrade may change where that points to.
fn resolve(argv0: &Path, here: &Path, path: Option<&OsStr>, same: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let named = argv0.components().count() > 1 || argv0.is_absolute();
    let candidates: Vec<PathBuf> = match (named, path) {
        (true, _) => vec![here.join(argv0)],
        (false, Some(path)) => env::split_paths(path).map(|dir| dir.join(argv0)).collect(),
        (false, None) => vec![],
    };
    candidates.into_iter().find(|p| same(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_as_it_was_started() {
        let find = |argv0: &str, is: &str| {
            let path = OsStr::new("/usr/local/bin:/usr/bin");
            resolve(Path::new(argv0), Path::new("/home"), Some(path), |p| p == Path::new(is))
        };
        assert_eq!(find("ezone", "/usr/bin/ezone"), Some("/usr/bin/ezone".into()));
        assert_eq!(find("./ezone", "/home/./ezone"), Some("/home/./ezone".into()));
        assert_eq!(
            find("/opt/ezone/current/ezone", "/opt/ezone/current/ezone"),
            Some("/opt/ezone/current/ezone".into())
        );
        assert_eq!(find("ezone", "/elsewhere/ezone"), None, "a name that leads to another program is not followed");
    }
}
