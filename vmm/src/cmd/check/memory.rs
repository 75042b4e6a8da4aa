//! What guest memory needs of the host.

use std::io;

use super::probe;
use super::report::{Row, plain};
use super::root::Root;

/// The limit of locked memory that distributions give by default.
const USUAL_MEMLOCK: u64 = 8 << 20;

/// Whether page faults of a guest can be served by this process.
pub(super) fn userfaultfd(root: &Root) -> Row {
    userfaultfd_row(probe::userfaultfd(), root)
}

fn userfaultfd_row(probed: io::Result<()>, root: &Root) -> Row {
    const CHECK: &str = "userfaultfd";
    let Err(error) = probed else {
        return Row::pass(CHECK, "guest memory can be filled on demand");
    };
    if root.open("/dev/userfaultfd").is_ok() {
        return Row::pass(
            CHECK,
            "guest memory can be filled on demand, by /dev/userfaultfd",
        );
    }
    let mend = match error.raw_os_error() {
        Some(libc::ENOSYS) => "run a kernel built with CONFIG_USERFAULTFD",
        _ => {
            "sysctl -w vm.unprivileged_userfaultfd=1, or give access to /dev/userfaultfd; in a container, use a \
             seccomp profile that allows userfaultfd"
        }
    };
    Row::warn(
        CHECK,
        format!(
            "userfaultfd is refused ({}): guest memory cannot be filled on demand",
            plain(&error)
        ),
        mend,
    )
}

/// How much memory this process may lock.
pub(super) fn memlock() -> Row {
    memlock_row(probe::limit(libc::RLIMIT_MEMLOCK))
}

fn memlock_row(limit: io::Result<Option<u64>>) -> Row {
    const CHECK: &str = "memlock";
    let mend = "ulimit -l unlimited before the start, LimitMEMLOCK= in a systemd unit, or --ulimit memlock=-1 of a \
                container";
    match limit {
        Ok(None) => Row::pass(CHECK, "no limit of locked memory"),
        Ok(Some(bytes)) if bytes >= USUAL_MEMLOCK => {
            Row::pass(CHECK, format!("{} can be locked", size(bytes)))
        }
        Ok(Some(bytes)) => Row::warn(
            CHECK,
            format!(
                "only {} can be locked: rings of older kernels may not fit",
                size(bytes)
            ),
            mend,
        ),
        Err(error) => Row::warn(
            CHECK,
            format!("the limit cannot be read: {}", plain(&error)),
            mend,
        ),
    }
}

/// Which huge pages there are for `hugepages=on`.
pub(super) fn hugepages(root: &Root) -> Row {
    const CHECK: &str = "hugepages";
    const DIRECTORY: &str = "/sys/kernel/mm/hugepages";
    let mut pools: Vec<(u64, u64, u64)> = std::fs::read_dir(root.path(DIRECTORY))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kib: u64 = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let number = |file: &str| root.number(format!("{DIRECTORY}/{name}/{file}"));
            Some((
                kib << 10,
                number("free_hugepages")?,
                number("nr_hugepages")?,
            ))
        })
        .collect();
    pools.sort_unstable();
    if pools.is_empty() {
        return Row::warn(
            CHECK,
            "none: --memory hugepages=on cannot work",
            "run a kernel built with CONFIG_HUGETLBFS",
        );
    }
    let detail: Vec<_> = pools
        .iter()
        .map(|(bytes, free, total)| format!("{}: {free} free of {total}", size(*bytes)))
        .collect();
    let detail = detail.join(", ");
    if pools.iter().all(|(_, free, _)| *free == 0) {
        return Row::warn(
            CHECK,
            format!("{detail}; --memory hugepages=on needs some"),
            "sysctl -w vm.nr_hugepages=N reserves N pages of the default size",
        );
    }
    Row::pass(CHECK, detail)
}

/// Whether guest memory can be made of larger pages without a reservation.
pub(super) fn transparent_hugepages(root: &Root) -> Row {
    const CHECK: &str = "thp";
    let enabled = root.read("/sys/kernel/mm/transparent_hugepage/enabled");
    let chosen = enabled
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match chosen {
        Some(mode @ ("always" | "madvise")) => Row::pass(CHECK, mode),
        Some(mode) => Row::warn(
            CHECK,
            format!("{mode}: guests have more TLB misses"),
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        None => Row::warn(
            CHECK,
            "not in this kernel: guests have more TLB misses",
            "run a kernel built with CONFIG_TRANSPARENT_HUGEPAGE",
        ),
    }
}

/// A number of bytes for people.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.into_iter().find(|(_, shift)| bytes >> shift != 0) {
        None => format!("{bytes} B"),
        Some((unit, shift)) => {
            let (whole, rest) = (bytes >> shift, bytes & ((1 << shift) - 1));
            match (rest * 10) >> shift {
                0 => format!("{whole} {unit}"),
                tenth => format!("{whole}.{tenth} {unit}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::super::tests::tree;
    use super::*;

    #[test]
    fn userfaultfd_is_also_had_by_its_device() {
        let refused = || Err(io::Error::from_raw_os_error(libc::EPERM));
        let (_keep, root) = tree(&[]);
        let row = userfaultfd_row(refused(), &root);
        assert_eq!(row.status, Status::Warn);
        assert!(row.mend.unwrap().contains("vm.unprivileged_userfaultfd=1"));
        assert_eq!(userfaultfd_row(Ok(()), &root).status, Status::Pass);
        let (_keep, root) = tree(&[("/dev/userfaultfd", "")]);
        assert_eq!(userfaultfd_row(refused(), &root).status, Status::Pass);
    }

    #[test]
    fn a_small_memlock_limit_is_a_warning() {
        assert_eq!(memlock_row(Ok(Some(64 << 10))).status, Status::Warn);
        assert_eq!(memlock_row(Ok(Some(8 << 20))).status, Status::Pass);
        assert_eq!(memlock_row(Ok(None)).status, Status::Pass);
    }

    #[test]
    fn huge_pages_are_counted_by_size() {
        let (_keep, root) = tree(&[
            (
                "/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages",
                "1",
            ),
            (
                "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
                "1",
            ),
            (
                "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
                "3\n",
            ),
            (
                "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
                "8\n",
            ),
        ]);
        let row = hugepages(&root);
        assert_eq!(
            row,
            Row::pass("hugepages", "2 MiB: 3 free of 8, 1 GiB: 1 free of 1")
        );
    }

    #[test]
    fn huge_pages_that_are_all_taken_are_a_warning() {
        let (_keep, root) = tree(&[
            (
                "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
                "0\n",
            ),
            (
                "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
                "8\n",
            ),
        ]);
        assert_eq!(hugepages(&root).status, Status::Warn);
        let (_keep, root) = tree(&[]);
        assert_eq!(hugepages(&root).status, Status::Warn);
    }

    #[test]
    fn the_chosen_mode_of_transparent_huge_pages_counts() {
        let status = |text: &str| {
            let (_keep, root) = tree(&[("/sys/kernel/mm/transparent_hugepage/enabled", text)]);
            transparent_hugepages(&root).status
        };
        assert_eq!(status("always [madvise] never"), Status::Pass);
        assert_eq!(status("[always] madvise never"), Status::Pass);
        assert_eq!(status("always madvise [never]"), Status::Warn);
        assert_eq!(status(""), Status::Warn);
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(512), "512 B");
        assert_eq!(size(8 << 20), "8 MiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(size(u64::MAX), "16777215.9 TiB");
    }
}
