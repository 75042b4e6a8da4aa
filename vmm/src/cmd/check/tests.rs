//! A made file tree for the rows' tests, and the list as a whole.

use super::report::Status;
use super::root::Root;
use super::*;

/// A directory with these files in it; it is removed when the first part is dropped.
pub(super) fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::at(directory.path());
    for (path, text) in files {
        let path = root.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    (directory, root)
}

#[test]
fn every_row_that_did_not_pass_says_how_to_mend_it() {
    let (_keep, empty) = tree(&[]);
    for root in [empty, Root::host()] {
        for row in rows(&root) {
            assert_eq!(row.mend.is_some(), row.status != Status::Pass, "{row:?}");
            assert!(!row.detail.is_empty(), "{row:?}");
        }
    }
}

#[test]
fn no_check_is_named_twice() {
    let mut names: Vec<_> = rows(&Root::host()).iter().map(|row| row.check).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
