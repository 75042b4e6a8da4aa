//! What networks and disks need of the host.

use std::io;

use super::probe;
use super::report::{Row, plain};
use super::root::Root;

/// Whether a tap can be made: really makes one.
pub(super) fn tap(root: &Root) -> Row {
    const CHECK: &str = "tap";
    let tun = match root.open("/dev/net/tun") {
        Ok(tun) => tun,
        Err(error) => {
            let mend = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "chmod 666 /dev/net/tun, as most distributions have it, or run as root"
                }
                _ => "modprobe tun; in a container, pass /dev/net/tun in",
            };
            return Row::warn(
                CHECK,
                format!("/dev/net/tun cannot be opened: {}", plain(&error)),
                format!("{mend}. A tap that somebody else opened also does: --net fd=N"),
            );
        }
    };
    match probe::tap(&tun) {
        Ok(()) => Row::pass(CHECK, "/dev/net/tun opens and taps can be made"),
        Err(error) => Row::warn(
            CHECK,
            format!(
                "/dev/net/tun opens, but a tap cannot be made: {}",
                plain(&error)
            ),
            "give the capability CAP_NET_ADMIN, or use a tap that was made for this user (ip tuntap add mode tap user \
             USER), or pass an open one: --net fd=N",
        ),
    }
}

/// Whether a ring can be set up: really sets one up.
pub(super) fn io_uring(root: &Root) -> Row {
    let disabled = root.number("/proc/sys/kernel/io_uring_disabled");
    io_uring_row(probe::io_uring(), disabled)
}

fn io_uring_row(probed: io::Result<()>, disabled: Option<u64>) -> Row {
    const CHECK: &str = "io_uring";
    let Err(error) = probed else {
        return Row::pass(CHECK, "a ring can be set up");
    };
    let mend = match (error.raw_os_error(), disabled) {
        (_, Some(1 | 2)) => "sysctl -w kernel.io_uring_disabled=0".to_owned(),
        (Some(libc::ENOSYS), _) => {
            "run a kernel built with CONFIG_IO_URING; in a container, use a seccomp profile that allows it".to_owned()
        }
        (Some(libc::ENOMEM), _) => "raise the limit of locked memory: ulimit -l".to_owned(),
        _ => "in a container, use a seccomp profile that allows io_uring_setup, io_uring_enter and io_uring_register"
            .to_owned(),
    };
    Row::warn(
        CHECK,
        format!(
            "a ring cannot be set up ({}): disks do one transfer at a time",
            plain(&error)
        ),
        mend,
    )
}

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::*;

    #[test]
    fn a_host_without_tun_gets_a_warning_and_the_way_out() {
        let directory = tempfile::tempdir().unwrap();
        let row = tap(&Root::at(directory.path()));
        assert_eq!(row.status, Status::Warn);
        assert!(row.mend.unwrap().contains("modprobe tun"));
    }

    #[test]
    fn a_tun_that_is_no_tun_makes_no_tap() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("dev/net")).unwrap();
        std::fs::write(directory.path().join("dev/net/tun"), "").unwrap();
        let row = tap(&Root::at(directory.path()));
        assert_eq!(row.status, Status::Warn);
        assert!(
            row.detail.contains("a tap cannot be made"),
            "{}",
            row.detail
        );
    }

    #[test]
    fn the_way_out_of_a_refused_ring_depends_on_who_refuses() {
        let refused = |errno, disabled| {
            let row = io_uring_row(Err(io::Error::from_raw_os_error(errno)), disabled);
            assert_eq!(row.status, Status::Warn);
            row.mend.unwrap()
        };
        assert!(refused(libc::EPERM, Some(2)).contains("io_uring_disabled=0"));
        assert!(refused(libc::EPERM, Some(0)).contains("seccomp"));
        assert!(refused(libc::ENOSYS, None).contains("CONFIG_IO_URING"));
        assert!(refused(libc::ENOMEM, Some(0)).contains("ulimit -l"));
        assert_eq!(io_uring_row(Ok(()), None).status, Status::Pass);
    }
}
