//! CPUs of the host that a thread is kept on.

use std::fmt;
use std::io;
use std::thread;

/// How many CPUs of the host can be told apart.
const MAX_CPUS: usize = libc::CPU_SETSIZE as usize;

/// Why threads cannot be kept on some CPUs.
#[derive(Debug, thiserror::Error)]
pub enum HostCpuError {
    /// There is no such CPU, or a cpuset keeps this process off it.
    #[error("host CPU {cpu} is not there for this process, expected some of {usable}")]
    Absent {
        /// Index of the CPU.
        cpu: usize,
        /// Those that are there, as in `0-3,8`.
        usable: Box<str>,
    },
    /// There is nothing to run on.
    #[error("no host CPU is named, expected at least one")]
    Empty,
    /// The host did not let it be found out.
    #[error("cannot find out about host CPUs")]
    Host(#[source] io::Error),
}

/// CPUs of the host, at least one, all of which this process could use when they were named.
#[derive(Clone)]
pub struct HostCpus {
    set: libc::cpu_set_t,
}

impl fmt::Debug for HostCpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostCpus({})", ranges(&self.indices()))
    }
}

impl HostCpus {
    /// The CPUs with these indices, in any order.
    ///
    /// # Errors
    ///
    /// [`HostCpuError`] for the first that cannot be used.
    pub fn new(cpus: &[usize]) -> Result<Self, HostCpuError> {
        if cpus.is_empty() {
            return Err(HostCpuError::Empty);
        }
        // A thread that is moved from CPU to CPU, and then ends.
        thread::scope(|scope| {
            let probe = thread::Builder::new()
                .name("host-cpus".to_owned())
                .spawn_scoped(scope, || {
                    let absent = cpus.iter().find(|cpu| !is_usable(**cpu));
                    absent.map(|cpu| HostCpuError::Absent {
                        cpu: *cpu,
                        usable: ranges(
                            &(0..MAX_CPUS)
                                .filter(|cpu| is_usable(*cpu))
                                .collect::<Vec<_>>(),
                        )
                        .into(),
                    })
                })
                .map_err(HostCpuError::Host)?;
            match probe.join() {
                Ok(None) => Ok(Self { set: set_of(cpus) }),
                Ok(Some(error)) => Err(error),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The indices in ascending order.
    pub fn indices(&self) -> Vec<usize> {
        // SAFETY: the indices are below the size of the set.
        #[expect(unsafe_code)]
        let is_set = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &self.set) };
        (0..MAX_CPUS).filter(is_set).collect()
    }

    /// Keeps `thread` on these CPUs.
    pub(crate) fn keep<T>(&self, thread: &thread::JoinHandle<T>) -> io::Result<()> {
        use std::os::unix::thread::JoinHandleExt;
        // SAFETY: the handle is there, so the thread was not joined; the set is read during the call.
        #[expect(unsafe_code)]
        let result = unsafe {
            libc::pthread_setaffinity_np(
                thread.as_pthread_t(),
                size_of::<libc::cpu_set_t>(),
                &raw const self.set,
            )
        };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        Ok(())
    }
}

/// Whether the calling thread could be moved to `cpu`, and now is there.
fn is_usable(cpu: usize) -> bool {
    if cpu >= MAX_CPUS {
        return false;
    }
    let set = set_of(&[cpu]);
    // SAFETY: the set is read during the call, which is about the calling thread.
    #[expect(unsafe_code)]
    let result =
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    result == 0
}

/// The set of `cpus`, each below [`MAX_CPUS`].
fn set_of(cpus: &[usize]) -> libc::cpu_set_t {
    // SAFETY: all bits zero is the empty set, and the indices are below the size of the set.
    #[expect(unsafe_code)]
    unsafe {
        let mut set = std::mem::zeroed();
        for cpu in cpus {
            libc::CPU_SET(*cpu, &mut set);
        }
        set
    }
}

/// Ascending indices as in `0-3,8`.
fn ranges(indices: &[usize]) -> String {
    let parts = indices.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    });
    parts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_that_is_not_there_is_named_with_those_that_are() {
        for cpu in [MAX_CPUS - 1, MAX_CPUS, usize::MAX] {
            let error = HostCpus::new(&[0, cpu]).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("host CPU {cpu} is not there")),
                "{error}"
            );
            assert!(error.contains("expected some of 0"), "{error}");
        }
        assert!(matches!(HostCpus::new(&[]), Err(HostCpuError::Empty)));
    }

    #[test]
    fn naming_cpus_moves_nobody() {
        let allowed = || {
            std::fs::read_to_string("/proc/thread-self/status").map(|status| {
                let line = status
                    .lines()
                    .find(|line| line.starts_with("Cpus_allowed:"));
                line.unwrap().to_owned()
            })
        };
        let before = allowed().unwrap();
        let cpus = HostCpus::new(&[0]).unwrap();
        assert_eq!(allowed().unwrap(), before);
        assert_eq!(cpus.indices(), [0]);
        assert_eq!(format!("{cpus:?}"), "HostCpus(0)");
    }

    #[test]
    fn neighbours_are_written_as_a_range() {
        assert_eq!(ranges(&[0, 1, 2, 8]), "0-2,8");
        assert_eq!(ranges(&[3, 5, 6]), "3,5-6");
        assert_eq!(ranges(&[]), "");
    }
}
