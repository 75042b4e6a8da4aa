//! What holds this process in: cgroups, limits, containers, and what it can confine itself with.

use std::path::{Path, PathBuf};

use super::memory::size;
use super::probe;
use super::report::{Row, plain};
use super::root::Root;

/// Memory that a machine of the default size and its VMM fit in.
const ENOUGH_MEMORY: u64 = 640 << 20;
/// Descriptors that a machine with some dozens of devices needs.
const ENOUGH_FILES: u64 = 1024;
/// The oldest kernel that has all that is asked of it.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// A cgroup hierarchy: where it is mounted, and which part of it this process is in.
struct Hierarchy {
    mount: PathBuf,
    group: PathBuf,
}

impl Hierarchy {
    /// The hierarchy of a version 1 controller, or with None the unified one.
    fn of(root: &Root, controller: Option<&str>) -> Option<Self> {
        let wanted = |list: &str| match controller {
            Some(controller) => list.split(',').any(|item| item == controller),
            None => list.is_empty(),
        };
        let membership = root.read("/proc/self/cgroup");
        let group = membership.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, list, path) = (fields.next()?, fields.next()?, fields.next()?);
            wanted(list).then(|| PathBuf::from(path))
        })?;
        let kind = if controller.is_some() {
            "cgroup"
        } else {
            "cgroup2"
        };
        let mounts = root.read("/proc/self/mountinfo");
        let mount = mounts.lines().find_map(|line| {
            let (place, filesystem) = line.split_once(" - ")?;
            let mut filesystem = filesystem.split_whitespace();
            let (found, options) = (filesystem.next()?, filesystem.nth(1)?);
            let matches = found == kind
                && controller.is_none_or(|name| options.split(',').any(|item| item == name));
            matches.then(|| place.split_whitespace().nth(4).map(PathBuf::from))?
        })?;
        Some(Self { mount, group })
    }

    /// The directories from the process's group up to the mount. A group that is not below the mount, as in a
    /// container without a cgroup namespace, is the mount itself.
    fn directories(&self, root: &Root) -> Vec<PathBuf> {
        let group = self.group.strip_prefix("/").unwrap_or(&self.group);
        let innermost = self.mount.join(group);
        let innermost = if root.path(&innermost).is_dir() {
            innermost
        } else {
            self.mount.clone()
        };
        innermost
            .ancestors()
            .take_while(|directory| directory.starts_with(&self.mount))
            .map(Path::to_owned)
            .collect()
    }

    /// The smallest of what `read` finds in the directories.
    fn smallest<T: PartialOrd>(&self, root: &Root, read: impl Fn(&Path) -> Option<T>) -> Option<T> {
        self.directories(root)
            .iter()
            .filter_map(|directory| read(directory))
            .reduce(|a, b| if b < a { b } else { a })
    }
}

/// How much memory the process and its guest may use.
pub(super) fn cgroup_memory(root: &Root) -> Row {
    const CHECK: &str = "cgroup memory";
    // Version 1 says "no limit" by the largest number of pages that it can count.
    const V1_UNLIMITED: u64 = 1 << 62;
    let v2 = Hierarchy::of(root, None).and_then(|hierarchy| {
        hierarchy.smallest(root, |directory| root.number(directory.join("memory.max")))
    });
    let v1 = Hierarchy::of(root, Some("memory")).and_then(|hierarchy| {
        hierarchy.smallest(root, |directory| {
            root.number(directory.join("memory.limit_in_bytes"))
        })
    });
    match [v1, v2].into_iter().flatten().min() {
        Some(bytes) if bytes < ENOUGH_MEMORY => Row::warn(
            CHECK,
            format!(
                "{}: a guest of the default 512 MiB does not fit",
                size(bytes)
            ),
            "raise the memory limit of the container or unit, or give the guest less: --memory size=S",
        ),
        Some(bytes) if bytes < V1_UNLIMITED => {
            Row::pass(CHECK, format!("{} for the guest and the VMM", size(bytes)))
        }
        _ => Row::pass(CHECK, "no limit"),
    }
}

/// How much processor time the process may use.
pub(super) fn cgroup_cpu(root: &Root) -> Row {
    const CHECK: &str = "cgroup cpu";
    let v2 = Hierarchy::of(root, None).and_then(|hierarchy| {
        hierarchy.smallest(root, |directory| {
            let text = root.read(directory.join("cpu.max"));
            let (quota, period) = text.split_once(' ')?;
            cpus(quota, period)
        })
    });
    let v1 = Hierarchy::of(root, Some("cpu")).and_then(|hierarchy| {
        hierarchy.smallest(root, |directory| {
            let read = |file: &str| root.read(directory.join(file));
            cpus(&read("cpu.cfs_quota_us"), &read("cpu.cfs_period_us"))
        })
    });
    let limit = [v1, v2].into_iter().flatten().reduce(f64::min);
    match limit {
        Some(cpus) if cpus < 1.0 => Row::warn(
            CHECK,
            format!("{cpus:.2} CPUs: guests are slowed down"),
            "raise the CPU limit of the container or unit to one or more",
        ),
        Some(cpus) => Row::pass(CHECK, format!("{cpus:.2} CPUs")),
        None => Row::pass(CHECK, "no limit"),
    }
}

/// The limit in CPUs that a quota of time in a period is, both in microseconds; None where the quota is `max` or -1.
fn cpus(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (u32, u32) = (quota.parse().ok()?, period.parse().ok()?);
    (period != 0).then(|| f64::from(quota) / f64::from(period))
}

/// How many descriptors this process may have.
pub(super) fn open_files() -> Row {
    open_files_row(probe::limit(libc::RLIMIT_NOFILE))
}

fn open_files_row(limit: std::io::Result<Option<u64>>) -> Row {
    const CHECK: &str = "open files";
    let mend = "ulimit -n 4096 before the start, LimitNOFILE= in a systemd unit, or --ulimit nofile=4096 of a container";
    match limit {
        Ok(None) => Row::pass(CHECK, "no limit"),
        Ok(Some(count)) if count >= ENOUGH_FILES => Row::pass(CHECK, format!("{count} at a time")),
        Ok(Some(count)) => Row::warn(
            CHECK,
            format!("only {count} at a time: a machine with many devices does not fit"),
            mend,
        ),
        Err(error) => Row::warn(
            CHECK,
            format!("the limit cannot be read: {}", plain(&error)),
            mend,
        ),
    }
}

/// Whether the process can give up its access to files.
pub(super) fn landlock() -> Row {
    landlock_row(probe::landlock_abi())
}

fn landlock_row(abi: std::io::Result<u32>) -> Row {
    const CHECK: &str = "landlock";
    match abi {
        Ok(abi) => Row::pass(CHECK, format!("ABI {abi}")),
        Err(error) => Row::warn(
            CHECK,
            format!(
                "not there ({}): the process cannot confine itself to the machine's files",
                plain(&error)
            ),
            match error.raw_os_error() {
                Some(libc::EOPNOTSUPP) => "boot the host with lsm=landlock,... on its command line",
                _ => "run a kernel of 5.13 or later built with CONFIG_SECURITY_LANDLOCK",
            },
        ),
    }
}

/// Whether this process is in a container. Nothing to mend: it says where the other rows' mends are to be applied.
pub(super) fn container(root: &Root) -> Row {
    container_row(root, std::env::var_os("KUBERNETES_SERVICE_HOST").is_some())
}

fn container_row(root: &Root, in_kubernetes: bool) -> Row {
    let group = root.read("/proc/1/cgroup");
    let engine_group = [
        "/docker",
        "/kubepods",
        "/libpod",
        "/lxc",
        "/machine.slice",
        "cri-containerd",
    ]
    .into_iter()
    .find(|mark| group.contains(mark));
    let detail = if in_kubernetes {
        "in a Kubernetes pod".to_owned()
    } else if root.exists("/run/.containerenv") {
        "in a Podman container".to_owned()
    } else if root.exists("/.dockerenv") {
        "in a Docker container".to_owned()
    } else if let Some(mark) = engine_group {
        format!(
            "in a container, by its cgroup ({})",
            mark.trim_start_matches('/')
        )
    } else {
        "not in a container".to_owned()
    };
    Row::pass("container", detail)
}

/// Whether the kernel is recent enough.
pub(super) fn kernel(root: &Root) -> Row {
    const CHECK: &str = "kernel";
    let release = root.read("/proc/sys/kernel/osrelease");
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    let (major, minor) = OLDEST_KERNEL;
    match (numbers.next(), numbers.next()) {
        (Some(a), Some(b)) if (a, b) >= OLDEST_KERNEL => {
            Row::pass(CHECK, format!("Linux {release}"))
        }
        (Some(_), Some(_)) => Row::warn(
            CHECK,
            format!("Linux {release} is older than {major}.{minor}: parts may be missing"),
            format!("run Linux {major}.{minor} or later on this host"),
        ),
        _ => Row::warn(
            CHECK,
            format!("the kernel's version {release:?} cannot be read"),
            "mount /proc",
        ),
    }
}

#[cfg(test)]
#[path = "confinement_tests.rs"]
mod tests;
