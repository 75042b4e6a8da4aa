use std::io;

use super::super::report::Status;
use super::super::tests::tree;
use super::*;

const V2_MOUNT: (&str, &str) = (
    "/proc/self/mountinfo",
    "23 1 0:28 / / rw - overlay overlay rw\n30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
);
const V1_MOUNTS: (&str, &str) = (
    "/proc/self/mountinfo",
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
     35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
);

#[test]
fn the_smallest_limit_on_the_way_up_counts() {
    let (_keep, root) = tree(&[
        V2_MOUNT,
        ("/proc/self/cgroup", "0::/pods/one\n"),
        ("/sys/fs/cgroup/pods/memory.max", "2147483648\n"),
        ("/sys/fs/cgroup/pods/cpu.max", "150000 100000\n"),
        ("/sys/fs/cgroup/pods/one/memory.max", "max\n"),
        ("/sys/fs/cgroup/pods/one/cpu.max", "max 100000\n"),
    ]);
    assert_eq!(
        cgroup_memory(&root),
        Row::pass("cgroup memory", "2 GiB for the guest and the VMM")
    );
    assert_eq!(cgroup_cpu(&root), Row::pass("cgroup cpu", "1.50 CPUs"));
}

#[test]
fn version_1_limits_count_too() {
    let (_keep, root) = tree(&[
        V1_MOUNTS,
        ("/proc/self/cgroup", "4:memory:/a\n1:cpu,cpuacct:/b\n0::/\n"),
        (
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
            "268435456\n",
        ),
        ("/sys/fs/cgroup/cpu,cpuacct/b/cpu.cfs_quota_us", "50000\n"),
        ("/sys/fs/cgroup/cpu,cpuacct/b/cpu.cfs_period_us", "100000\n"),
    ]);
    let memory = cgroup_memory(&root);
    assert_eq!(memory.status, Status::Warn);
    assert!(memory.detail.starts_with("256 MiB"), "{}", memory.detail);
    let cpu = cgroup_cpu(&root);
    assert_eq!(cpu.status, Status::Warn);
    assert!(cpu.detail.starts_with("0.50 CPUs"), "{}", cpu.detail);
}

#[test]
fn no_limit_is_said_in_all_ways() {
    for limits in [
        vec![],
        vec![
            V1_MOUNTS,
            ("/proc/self/cgroup", "4:memory:/\n1:cpu,cpuacct:/\n"),
            (
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ],
        vec![
            V2_MOUNT,
            ("/proc/self/cgroup", "0::/\n"),
            ("/sys/fs/cgroup/memory.max", "max\n"),
        ],
    ] {
        let (_keep, root) = tree(&limits);
        assert_eq!(cgroup_memory(&root), Row::pass("cgroup memory", "no limit"));
        assert_eq!(cgroup_cpu(&root), Row::pass("cgroup cpu", "no limit"));
    }
}

#[test]
fn a_group_that_is_not_below_the_mount_is_the_mount() {
    let (_keep, root) = tree(&[
        V2_MOUNT,
        ("/proc/self/cgroup", "0::/kubepods/pod1/container\n"),
        ("/sys/fs/cgroup/memory.max", "1073741824\n"),
    ]);
    assert_eq!(
        cgroup_memory(&root).detail,
        "1 GiB for the guest and the VMM"
    );
}

#[test]
fn containers_are_told_by_their_marks() {
    let detail = |files: &[(&str, &str)], in_kubernetes| {
        let (_keep, root) = tree(files);
        container_row(&root, in_kubernetes).detail
    };
    assert_eq!(detail(&[], false), "not in a container");
    assert_eq!(
        detail(&[("/.dockerenv", "")], false),
        "in a Docker container"
    );
    assert_eq!(
        detail(&[("/run/.containerenv", "")], false),
        "in a Podman container"
    );
    assert_eq!(detail(&[("/.dockerenv", "")], true), "in a Kubernetes pod");
    assert_eq!(
        detail(
            &[("/proc/1/cgroup", "0::/kubepods/besteffort/pod1\n")],
            false
        ),
        "in a container, by its cgroup (kubepods)"
    );
}

#[test]
fn old_kernels_are_a_warning() {
    let status = |release: &str| {
        let (_keep, root) = tree(&[("/proc/sys/kernel/osrelease", release)]);
        kernel(&root).status
    };
    assert_eq!(status("6.1.0-18-cloud-amd64\n"), Status::Pass);
    assert_eq!(status("5.15.0\n"), Status::Pass);
    assert_eq!(status("5.10.0\n"), Status::Warn);
    assert_eq!(status("4.19.0\n"), Status::Warn);
    assert_eq!(status(""), Status::Warn);
}

#[test]
fn landlock_that_is_off_and_landlock_that_is_absent_have_different_ways_out() {
    let mend = |errno| {
        let row = landlock_row(Err(io::Error::from_raw_os_error(errno)));
        assert_eq!(row.status, Status::Warn);
        row.mend.unwrap()
    };
    assert!(mend(libc::EOPNOTSUPP).contains("lsm=landlock"));
    assert!(mend(libc::ENOSYS).contains("CONFIG_SECURITY_LANDLOCK"));
    assert_eq!(landlock_row(Ok(4)), Row::pass("landlock", "ABI 4"));
}

#[test]
fn few_open_files_are_a_warning() {
    assert_eq!(open_files_row(Ok(Some(256))).status, Status::Warn);
    assert_eq!(open_files_row(Ok(Some(1024))).status, Status::Pass);
    assert_eq!(open_files_row(Ok(None)).status, Status::Pass);
}
