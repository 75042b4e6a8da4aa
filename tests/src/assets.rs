//! The files that guests are made of, and the binary under test.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const HOW: &str = "run the tests with ./tests/run guest, which brings it";

/// The `podvisor` binary: `$PODVISOR`, or else the one of this build.
pub fn podvisor() -> Result<PathBuf> {
    let path = match env::var_os("PODVISOR") {
        Some(path) => PathBuf::from(path),
        None => {
            let mut path = env::current_exe().context("cannot find the test's own binary")?;
            path.pop();
            path.pop();
            path.join("podvisor")
        }
    };
    ensure!(
        path.is_file(),
        "there is no {}; build it with: cargo build -p vmm --bin podvisor",
        path.display()
    );
    Ok(path)
}

/// Debian's cloud kernel as it is packaged: a bzImage.
pub fn bzimage() -> Result<PathBuf> {
    cached("kernel-cloud-amd64/vmlinuz")
}

/// The same kernel as an ELF file with a PVH note.
pub fn vmlinux() -> Result<PathBuf> {
    cached("vmlinux")
}

/// Debian's kernel for any machine, a bzImage, which has drivers for hardware that the cloud kernel has none for.
pub fn general_kernel() -> Result<PathBuf> {
    cached("kernel-amd64/vmlinuz")
}

/// A module of that kernel, by its path in the kernel's tree, as in `drivers/watchdog/i6300esb.ko`.
pub fn general_module(name: &str) -> Result<PathBuf> {
    let versions = cache().join("kernel-amd64/lib/modules");
    let version = fs::read_dir(&versions)
        .ok()
        .and_then(|mut versions| versions.next()?.ok())
        .with_context(|| format!("there is no {}; {HOW}", versions.display()))?;
    let path = version.path().join("kernel").join(name);
    ensure!(path.is_file(), "there is no {}; {HOW}", path.display());
    Ok(path)
}

/// The guest's small userland, an uncompressed cpio archive.
pub fn initramfs() -> Result<PathBuf> {
    cached("guest.cpio")
}

/// An ext4 image with Debian's fio and iperf3.
pub fn tools() -> Result<PathBuf> {
    cached("tools.img")
}

/// A disk with a Debian that cloud-init sets up, whose next kernel waits in `/upgrade`.
pub fn debian() -> Result<PathBuf> {
    cached("debian.img")
}

/// A Python interpreter that has what `tests/requirements.txt` lists.
pub fn python() -> Result<PathBuf> {
    let environment = cache().join("python");
    let path = environment.join("bin/python");
    ensure!(
        path.is_file(),
        "there is no {}; make it with: python3 -m venv {2} && {2}/bin/pip install -r {}",
        path.display(),
        ours("requirements.txt").display(),
        environment.display(),
    );
    Ok(path)
}

/// Prometheus' `promtool`.
pub fn promtool() -> Result<PathBuf> {
    let path = cache().join("promtool");
    ensure!(
        path.is_file(),
        "there is no {}; run the tests with ./tests/run kvm, which brings it",
        path.display()
    );
    Ok(path)
}

/// A file of the tests' own sources, by its path within `tests/`.
pub fn ours(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn cached(name: &str) -> Result<PathBuf> {
    let path = cache().join(name);
    ensure!(path.is_file(), "there is no {}; {HOW}", path.display());
    Ok(path)
}

/// Where `./tests/run` keeps what it fetched and made.
fn cache() -> PathBuf {
    match (
        env::var_os("PODVISOR_CACHE"),
        env::var_os("XDG_CACHE_HOME"),
        env::var_os("HOME"),
    ) {
        (Some(cache), _, _) => PathBuf::from(cache),
        (None, Some(caches), _) => PathBuf::from(caches).join("podvisor"),
        (None, None, Some(home)) => PathBuf::from(home).join(".cache/podvisor"),
        (None, None, None) => PathBuf::from("/root/.cache/podvisor"),
    }
}
